package artifacts

import (
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	oremote "oras.land/oras-go/v2/registry/remote"

	"tributary.dev/tributary/pkg/oci"
)

// TestOrdinaryClientsPullFromARelay lets the pullers that people and runtimes use ask
// a relay by digest: containerd's, go-containerregistry's and oras'.
func TestOrdinaryClientsPullFromARelay(t *testing.T) {
	tr := newTree(t, 0)
	img := random(t, 1<<20, 2, 5)
	ref, err := tr.core.Push(t.Context(), "default/app", img)
	if err != nil {
		t.Fatal(err)
	}
	_, client, err := tr.child(t, "a").Parent.Endpoint()
	if err != nil {
		t.Fatal(err)
	}
	full := tr.low.Addr + "/" + ref.Repo + "@" + ref.Digest

	t.Run("containerd", func(t *testing.T) {
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{Client: client, Host: tr.low.Addr, Scheme: "https", Path: "/v2", Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve}}, nil
		}})
		named, desc, err := resolver.Resolve(t.Context(), full)
		if err != nil || desc.Digest.String() != ref.Digest || desc.MediaType != oci.TypeManifest {
			t.Fatalf("%+v %v", desc, err)
		}
		fetcher, err := resolver.Fetcher(t.Context(), named)
		if err != nil {
			t.Fatal(err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			d := ocispec.Descriptor{Digest: digest.Digest(l.Digest.String()), Size: l.Size, MediaType: string(l.MediaType)}
			body, err := fetcher.Fetch(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			body.Close()
			if err != nil || oci.Digest(b) != d.Digest.String() {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
		}
	})
	t.Run("go-containerregistry", func(t *testing.T) {
		r, err := name.ParseReference(full)
		if err != nil {
			t.Fatal(err)
		}
		got, err := remote.Image(r, remote.WithTransport(client.Transport), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		layers, err := got.Layers()
		if err != nil || len(layers) != 2 {
			t.Fatal(len(layers), err)
		}
		for _, l := range layers {
			if err := validate.Layer(l, validate.Fast); err != nil {
				t.Error(err)
			}
			body, err := l.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, body); err != nil {
				t.Error(err)
			}
			body.Close()
		}
		tag, err := name.ParseReference(tr.low.Addr + "/default/app:latest")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Image(tag, remote.WithTransport(client.Transport)); err == nil || !strings.Contains(err.Error(), "by digest") {
			t.Errorf("a tag: %v", err)
		}
	})
	t.Run("oras", func(t *testing.T) {
		repo, err := oremote.NewRepository(tr.low.Addr + "/default/app")
		if err != nil {
			t.Fatal(err)
		}
		repo.Client = client
		got, err := oras.Copy(t.Context(), repo, ref.Digest, memory.New(), "", oras.DefaultCopyOptions)
		if err != nil || got.Digest.String() != ref.Digest {
			t.Fatal(got, err)
		}
	})
}
