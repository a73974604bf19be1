package oci

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"tributary.dev/tributary/pkg/api"
)

// Target is a registry to push to, as a person with a token.
type Target struct {
	// Base is the registry's address; scheme http is for tests only.
	Base *url.URL
	// Client carries the trust in the registry's certificate.
	Client *http.Client
	// Token is sent as the password of Basic authentication; empty for none.
	Token string
}

// PushBundle pushes an app bundle (deterministic JSON of api.Bundle) as an OCI
// artifact into repo and tags it, unless tag is empty. The digest is that of the
// artifact's manifest; size is the bundle's, in bytes. It may be repeated: what the
// registry has is not sent again.
func PushBundle(ctx context.Context, to Target, repo, tag string, bundle []byte) (dgst string, size int64, err error) {
	if err := CheckRepo(repo); err != nil {
		return "", 0, err
	}
	if tag != "" {
		if err := CheckTag(tag); err != nil {
			return "", 0, err
		}
	}
	r, err := remote.NewRepository(to.Base.Host + "/" + repo)
	if err != nil {
		return "", 0, &api.Error{Code: api.Invalid, Message: "cannot push to " + quote(to.Base.Host+"/"+repo), Err: err}
	}
	r.PlainHTTP = to.Base.Scheme == "http"
	client := &auth.Client{Client: to.Client}
	if to.Token != "" {
		client.Credential = auth.StaticCredential(to.Base.Host, auth.Credential{Username: "token", Password: to.Token})
	}
	r.Client = client
	manifest, dgst := BundleManifest(bundle)
	for _, blob := range []struct {
		mediaType string
		content   []byte
	}{{TypeEmpty, EmptyConfig}, {api.BundleType, bundle}} {
		if err := pushOne(ctx, r.Blobs(), blob.mediaType, blob.content); err != nil {
			return "", 0, pushError(repo, err)
		}
	}
	if err := pushOne(ctx, r.Manifests(), TypeManifest, manifest); err != nil {
		return "", 0, pushError(repo, err)
	}
	if tag != "" {
		desc := content.NewDescriptorFromBytes(TypeManifest, manifest)
		if err := r.Tag(ctx, desc, tag); err != nil {
			return "", 0, pushError(repo, err)
		}
	}
	return dgst, int64(len(bundle)), nil
}

func pushOne(ctx context.Context, to content.Storage, mediaType string, b []byte) error {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if ok, err := to.Exists(ctx, desc); err == nil && ok {
		return nil
	}
	err := to.Push(ctx, desc, bytes.NewReader(b))
	if err == nil || errors.Is(err, errdef.ErrAlreadyExists) {
		return nil
	}
	return err
}

// pushError gives a registry's answer one of our codes.
func pushError(repo string, err error) error {
	out := &api.Error{Code: api.Unavailable, Message: "push to " + repo + " failed", Remedy: "check the core's address and that it runs", Err: err}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		out.Code, out.Remedy = api.Unauthorized, "give a token"
	}
	var answer *errcode.ErrorResponse
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusUnauthorized:
			out.Code, out.Remedy = api.Unauthorized, "give a valid token"
		case http.StatusForbidden:
			out.Code, out.Remedy = api.Forbidden, "push into a repository of your own tenant: tenant/name"
		case http.StatusNotFound, http.StatusBadRequest:
			out.Code, out.Remedy = api.Invalid, "the registry's answer is below"
		}
	}
	return out
}
