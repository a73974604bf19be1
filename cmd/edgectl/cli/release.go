package cli

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/release"
)

func (a *app) releaseCommand() *cobra.Command {
	c := &cobra.Command{Use: "release", Short: "Sign releases of the boxes' system, offline, and push them",
		Long: `Sign releases of the boxes' system. None of these commands but push talks to a core: run them where the keys are.

  edgectl release key sign-1.key                     a new key
  edgectl release root --version 1 --root-key r1.pub --root-key r2.pub --root-threshold 2 --key s1.pub root.json
  edgectl release sign --key sign-1.key update.tbu   one more signature on a bundle (or on a root.json)
  edgectl release push update.tbu default/system --release v2
                                                     into the core's registry, and make the Release v2 of it, which a fleet may name`}
	c.AddCommand(a.releaseKeyCommand(), a.releaseRootCommand(), a.releaseSignCommand(), a.releaseShowCommand(), a.releasePushCommand())
	return c
}

func (a *app) releaseKeyCommand() *cobra.Command {
	return &cobra.Command{Use: "key FILE", Short: "Make a key: FILE is for its owner alone, FILE.pub for who makes the root", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err == nil {
				return api.Errorf(api.Conflict, "%s is there already, and is not written over", args[0])
			}
			k, err := release.NewKey(args[0])
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKIXPublicKey(k.Public())
			if err != nil {
				return err
			}
			return atomicfile.Write(args[0]+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
		}}
}

func (a *app) releasePushCommand() *cobra.Command {
	var quiet bool
	var name string
	c := &cobra.Command{Use: "push FILE [TENANT/]NAME[:TAG]", Short: "Push a signed bundle into the core's registry, and print it as a Release names it", Args: cobra.ExactArgs(2),
		Long: `Push a signed bundle into the core's registry, and print it as a Release names it.

With --release, the Release of that name is made, or changed to this bundle: its pcr11, by which the core knows
boxes that run it, is what the build wrote into the bundle. A fleet that names the Release installs it.`,
		Example: "  edgectl release push build/generic-amd64/update.tbu default/system --release v2",
		RunE: func(cmd *cobra.Command, args []string) error {
			artifact, err := a.pushed(cmd.Context(), args[0], args[1], quiet)
			if err == nil && name != "" {
				err = a.nameRelease(cmd.Context(), name, artifact, args[0])
			}
			if err == nil {
				_, err = fmt.Fprintln(a.Out, artifact)
			}
			return err
		}}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress bar")
	c.Flags().StringVar(&name, "release", "", "make or change the Release of this name")
	return c
}

// nameRelease makes the Release that names a bundle. What is there already keeps its labels, attempt and note.
func (a *app) nameRelease(ctx context.Context, name, artifact, file string) error {
	d, err := describe(file)
	if err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	kind, err := api.LookupKind(api.KindRelease)
	if err != nil {
		return err
	}
	o, err := cl.Get(ctx, kind, name)
	var spec api.ReleaseSpec
	switch {
	case err == nil:
		if err := json.Unmarshal(o.Spec, &spec); err != nil {
			return err
		}
		o.Status = nil
	case api.CodeOf(err) == api.NotFound:
		o = &api.Object{APIVersion: api.Version, Kind: api.KindRelease, Metadata: api.Meta{Name: name}}
	default:
		return err
	}
	spec.Artifact, spec.PCR11 = artifact, d.PCR11
	if o.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	_, err = cl.Apply(ctx, []*api.Object{o}, false)
	return err
}

// describe reads what a bundle says of itself.
func describe(file string) (d release.Description, err error) {
	f, err := os.Open(file)
	if err != nil {
		return d, err
	}
	defer f.Close()
	b, err := release.ReadBundle(f)
	if err != nil {
		return d, err
	}
	return release.ParseDescription(b.Description)
}

func readPublic(files []string) (keys []crypto.PublicKey, err error) {
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, api.Errorf(api.Invalid, "%s is no public key in PEM", file)
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, &api.Error{Code: api.Invalid, Message: file + " is no public key", Err: err}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func (a *app) releaseRootCommand() *cobra.Command {
	var version int64
	var rootKeys, keys []string
	var rootThreshold, threshold int
	var life time.Duration
	c := &cobra.Command{Use: "root FILE", Short: "Write an unsigned root: which keys vouch for releases, and how many of them", Args: cobra.ExactArgs(1),
		Long: `Write an unsigned root. Then every owner signs it: edgectl release sign --key KEY FILE. A root that
follows another has the next version and the signatures of the old one's keys as well as of its own.`,
		RunE: func(_ *cobra.Command, args []string) error {
			rk, err := readPublic(rootKeys)
			if err != nil {
				return err
			}
			sk, err := readPublic(keys)
			if err != nil {
				return err
			}
			raw, err := release.NewRoot(version, time.Now().Add(life).UTC().Truncate(time.Second), rk, rootThreshold, sk, threshold)
			if err != nil {
				return err
			}
			return atomicfile.Write(args[0], raw, 0o644)
		}}
	f := c.Flags()
	f.Int64Var(&version, "version", 1, "version of the root; one more than the one before")
	f.StringSliceVar(&rootKeys, "root-key", nil, "public key that may sign roots; may be repeated")
	f.IntVar(&rootThreshold, "root-threshold", 1, "how many of them a root needs")
	f.StringSliceVar(&keys, "key", nil, "public key that may sign releases; may be repeated")
	f.IntVar(&threshold, "threshold", 1, "how many of them a release needs")
	f.DurationVar(&life, "life", 5*365*24*time.Hour, "how long the root is good for")
	return c
}

func (a *app) releaseSignCommand() *cobra.Command {
	var key string
	var roots []string
	c := &cobra.Command{Use: "sign FILE", Short: "Add a signature to a bundle or a root", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var signer crypto.Signer
			if key != "" {
				var err error
				if signer, err = release.ReadKey(key); err != nil {
					return err
				}
			}
			head, err := beginning(args[0])
			if err != nil {
				return err
			}
			if head == '{' { // a root
				if signer == nil {
					return api.Errorf(api.Invalid, "give --key")
				}
				raw, err := os.ReadFile(args[0])
				if err != nil {
					return err
				}
				if raw, err = release.AddSignature(raw, signer); err != nil {
					return err
				}
				return atomicfile.Write(args[0], raw, 0o644)
			}
			var chain [][]byte
			for _, file := range roots {
				raw, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				chain = append(chain, raw)
			}
			digest, err := release.SignFile(args[0], signer, chain...)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
			return err
		}}
	c.Flags().StringVar(&key, "key", "", "file of the key")
	c.Flags().StringSliceVar(&roots, "root", nil, "root that goes with the release, oldest first; may be repeated")
	return c
}

func beginning(file string) (byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 1)
	_, err = io.ReadFull(f, b)
	return b[0], err
}

func (a *app) releaseShowCommand() *cobra.Command {
	var root string
	c := &cobra.Command{Use: "show BUNDLE", Short: "Say what a bundle holds and, with --root, whether a box with that root takes it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			b, err := release.ReadBundle(f)
			if err != nil {
				return err
			}
			d, err := release.ParseDescription(b.Description)
			if err != nil {
				return err
			}
			_, digest, err := b.Manifest()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "version %s for %s (%s), security counter %d\npcr 11  %s\ndigest  %s\ncontent %d bytes, %d to fetch, %d deltas\n", d.Version, d.Profile, d.Arch, d.Counter, cmp.Or(d.PCR11, "unknown"), digest, d.Content.Size, len(b.Plain), len(b.Deltas))
			if root == "" {
				return nil
			}
			raw, err := os.ReadFile(root)
			if err != nil {
				return err
			}
			t, err := release.TrustRoot(raw)
			if err != nil {
				return err
			}
			if _, _, err := t.Verify(b.Roots, b.Targets, b.Description, time.Now()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, "signed  by enough of the root's keys")
			return err
		}}
	c.Flags().StringVar(&root, "root", "", "root that boxes have")
	return c
}
