package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
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

// pushing is how a bundle is pushed.
type pushing struct {
	quiet, unsigned, again bool
	release                string
	roots                  []string
}

func (a *app) releasePushCommand() *cobra.Command {
	var p pushing
	c := &cobra.Command{Use: "push FILE [TENANT/]NAME[:TAG]", Short: "Push a signed bundle into the core's registry, and print it as a Release names it", Args: cobra.ExactArgs(2),
		Long: `Push a signed bundle into the core's registry, and print it as a Release names it. A bundle that is not signed by
enough of its root's keys is refused (by --root, those that boxes have), since boxes would refuse it.

With --release, the Release of that name is made, or gets one more system: one name serves boxes of several profiles,
each by a bundle of its own. Its pcr11, by which the core knows boxes that run it, is what the build wrote into the
bundle. A fleet that names the Release installs it. To put another bundle in the place of one takes --again.`,
		Example: `  edgectl release push build/generic-amd64/update.tbu default/system --release v2
  edgectl release push build/generic-arm64/update.tbu default/system --release v2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pushRelease(cmd.Context(), args[0], args[1], p)
		}}
	f := c.Flags()
	f.BoolVarP(&p.quiet, "quiet", "q", false, "no progress bar")
	f.StringVar(&p.release, "release", "", "make or change the Release of this name")
	f.StringSliceVar(&p.roots, "root", nil, "root that boxes have, oldest first; may be repeated")
	f.BoolVar(&p.unsigned, "unsigned", false, "push it though too few have signed it")
	f.BoolVar(&p.again, "again", false, "have the Release name this bundle in the place of another")
	return c
}

func (a *app) pushRelease(ctx context.Context, file, name string, p pushing) error {
	b, err := release.ReadFile(file)
	if err != nil {
		return inFile(file, err)
	}
	d, err := release.ParseDescription(b.Description)
	if err != nil {
		return inFile(file, err)
	}
	note, err := fitToPush(b, file, p.roots, a.now())
	if err != nil && !p.unsigned {
		return err
	}
	if note != "" {
		fmt.Fprintln(a.Err, note)
	}
	_, digest, err := b.Manifest()
	if err != nil {
		return err
	}
	var change *releaseChange
	if p.release != "" {
		if change, err = a.releaseChange(ctx, p.release, digest, d, p.again); err != nil {
			return err
		}
	}
	artifact, err := a.pushed(ctx, file, name, p.quiet)
	if err != nil {
		return err
	}
	if change != nil {
		if err := a.applyChange(ctx, change, artifact); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(a.Out, artifact)
	return err
}

// fitToPush asks whether boxes would take a bundle, as far as that can be known here: by the roots that are named, or those in it.
func fitToPush(b *release.Bundle, file string, named []string, now time.Time) (note string, err error) {
	const remedy = "have its keys' owners sign it (edgectl release sign); --unsigned pushes it all the same"
	chain, _, err := rootsOf(b, file, named)
	if err != nil {
		return "", err
	}
	if len(chain) == 0 {
		signers, err := release.Signers(b.Targets)
		if err != nil {
			return "", inFile(file, err)
		}
		if len(signers) == 0 { // check: signed at all
			return "", &api.Error{Code: api.Forbidden, Message: file + " is signed by nobody, and no box takes it", Remedy: remedy}
		}
		return "no root is in the bundle and none is named (--root): whether boxes take its signatures was not looked at", nil
	}
	if err := taken(b, chain, now); err != nil { // check: enough signatures
		e := &api.Error{Code: api.Forbidden, Message: file + " would be refused by every box", Remedy: remedy, Err: err}
		if errors.Is(err, release.ErrNotSigned) {
			e.Message, e.Err = file+" is not signed by enough keys, and no box takes it", nil
		}
		return "", e
	}
	return "", nil
}

// releaseChange is what a push makes of a Release.
type releaseChange struct {
	object *api.Object
	spec   api.ReleaseSpec
	system api.ReleaseSystem // its artifact's name is known once it is pushed
	none   bool              // it names the bundle already
}

// releaseChange finds out what is to change, and refuses to take from fleets what they run, unless again is set.
func (a *app) releaseChange(ctx context.Context, name, digest string, d release.Description, again bool) (*releaseChange, error) {
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	kind, err := api.LookupKind(api.KindRelease)
	if err != nil {
		return nil, err
	}
	c := &releaseChange{system: api.ReleaseSystem{Profile: d.Profile, Arch: d.Arch, Version: d.Version, Counter: d.Counter, PCR11: d.PCR11}}
	c.object, err = cl.Get(ctx, kind, name)
	switch {
	case err == nil:
		if err := json.Unmarshal(c.object.Spec, &c.spec); err != nil {
			return nil, err
		}
		c.object.Status = nil
	case api.CodeOf(err) == api.NotFound:
		c.object = &api.Object{APIVersion: api.Version, Kind: api.KindRelease, Metadata: api.Meta{Name: name}}
		return c, nil
	default:
		return nil, err
	}
	was := c.spec.For(d.Profile, d.Arch)
	if _, had, _ := strings.Cut(was, "@"); had == digest {
		c.none = true
		return c, nil
	}
	fleets, err := a.fleetsOf(ctx, cl, name)
	if err != nil {
		return nil, err
	}
	who := "no fleet names it yet"
	if len(fleets) > 0 {
		who = "fleets that name it install that at once: " + strings.Join(fleets, ", ")
	}
	if was != "" && !again { // check: another content
		return nil, &api.Error{Code: api.Conflict, Message: fmt.Sprintf("Release %s is %s for %s, and would become version %s, %s; %s", name, was, c.system.Family(), d.Version, digest, who),
			Remedy: "give this one a name of its own, or add --again if the Release is to change"}
	}
	fmt.Fprintf(a.Err, "Release %s gets version %s for %s; %s\n", name, d.Version, c.system.Family(), who)
	return c, nil
}

// fleetsOf lists the fleets that name a release.
func (a *app) fleetsOf(ctx context.Context, cl *client.Client, name string) (names []string, err error) {
	kind, err := api.LookupKind(api.KindFleet)
	if err != nil {
		return nil, err
	}
	all, err := cl.List(ctx, kind, client.ListOptions{})
	for _, o := range all {
		var spec api.FleetSpec
		if readSpec(o, &spec) == nil && spec.Release == name {
			names = append(names, o.Metadata.Name)
		}
	}
	return names, err
}

// applyChange makes the Release name the artifact. What is there already keeps its labels, attempt and note, and the
// systems of other families.
func (a *app) applyChange(ctx context.Context, c *releaseChange, artifact string) (err error) {
	if c.none {
		return nil
	}
	c.system.Artifact = artifact
	if at := slices.IndexFunc(c.spec.Systems, func(s api.ReleaseSystem) bool { return s.Family() == c.system.Family() }); at >= 0 {
		c.spec.Systems[at] = c.system
	} else {
		c.spec.Systems = append(c.spec.Systems, c.system)
	}
	if c.object.Spec, err = json.Marshal(c.spec); err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	_, err = cl.Apply(ctx, []*api.Object{c.object}, false)
	return err
}
