package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/release"
)

func (a *app) releaseCommand() *cobra.Command {
	c := &cobra.Command{Use: "release", Short: "Sign releases of the boxes' system, offline, and push them",
		Long: `Sign releases of the boxes' system. None of these commands but push talks to a core: run them where the keys are.

  edgectl release key r1.key                         a new key: r1.key for its owner, r1.key.pub for who makes the root
  edgectl release root --root-key r1.key.pub --root-key r2.key.pub --root-threshold 2 --key s1.key.pub release-root.json
                                                     which keys vouch for releases; its owners sign it next
  edgectl release sign --key r1.key release-root.json
  edgectl release sign --key s1.key update.tbu       one more signature on a root or a bundle
  edgectl release show update.tbu                    who signed, and how many signatures lack
  edgectl release push update.tbu default/system --release v2
                                                     into the core's registry, and make the Release v2 of it, which a fleet may name

For keys in a token or on a machine without edgectl: edgectl release payload. See docs/releases.md.`}
	c.AddCommand(a.releaseKeyCommand(), a.releaseRootCommand(), a.releaseSignCommand(), a.releasePayloadCommand(), a.releaseShowCommand(), a.releasePushCommand())
	return c
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
	b, err := release.ReadFile(file)
	if err != nil {
		return d, inFile(file, err)
	}
	return release.ParseDescription(b.Description)
}
