package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

func (a *app) rolloutCommand() *cobra.Command {
	c := &cobra.Command{Use: "rollout", Short: "Bring changes to devices wave by wave, and back"}
	c.AddCommand(a.planCommand(), a.rolloutStatusCommand(), a.rolloutHistoryCommand(), a.rolloutUndoCommand(), a.revokeCommand(), a.pinCommand(false), a.pinCommand(true))
	for _, o := range []struct{ order, short string }{
		{"pause", "Give no more devices the change for now"}, {"resume", "Go on; devices that failed try again"},
		{"promote", "Take the wave under way for passed, whatever became of it"}, {"approve", "Let the next wave begin"}} {
		c.AddCommand(a.orderCommand(o.order, o.short))
	}
	abort := a.orderCommand("abort", "End it, and take back what was given")
	keep := abort.Flags().Bool("keep", false, "leave what was given")
	run := abort.RunE
	abort.RunE = func(cmd *cobra.Command, args []string) error {
		if *keep {
			return a.order(cmd, args[0], "keep")
		}
		return run(cmd, args)
	}
	c.AddCommand(abort)
	return c
}

func (a *app) orderCommand(order, short string) *cobra.Command {
	return &cobra.Command{Use: order + " ROLLOUT", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.order(cmd, args[0], order)
	}}
}

func (a *app) order(cmd *cobra.Command, name, order string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	o, err := cl.OrderRollout(cmd.Context(), name, order)
	if err != nil {
		return err
	}
	var s api.RolloutStatus
	_ = readStatus(o, &s)
	fmt.Fprintf(a.Out, "rollout/%s: %s\n", o.Metadata.Name, s.Phase)
	return nil
}

func (a *app) planCommand() *cobra.Command {
	var o sourceOptions
	var output string
	c := &cobra.Command{Use: "plan -f FILE", Short: "Say what a Rollout would do: which devices, in which wave, how many bytes over which links", Args: cobra.NoArgs,
		Long: `Say what the Rollout of a file would do, with the objects beside it there: which devices get
it in which wave, for what it would wait, which devices it would leave out and why, and how
many bytes of artifacts would cross which link. Nothing is written.`,
		Example: "  edgectl rollout plan -f rollout.yaml\n  edgectl rollout plan -f app.yaml -f rollout.yaml -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			sources, err := a.readSources(o)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			objects := make([]*api.Object, len(sources))
			for i, s := range sources {
				objects[i] = s.object
			}
			plan, err := cl.PlanRollout(cmd.Context(), objects)
			if err != nil {
				return whereIs(err, sources)
			}
			if output != "" {
				return a.printValue(plan, output)
			}
			a.printPlan(plan)
			return nil
		}}
	sourceFlags(c, &o)
	c.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return c
}

func (a *app) printPlan(p *api.RolloutPlan) {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CHANGE\tREVISION\tDIGEST\tALONG WITH")
	for _, c := range p.Change {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", strings.ToLower(c.Kind)+"/"+c.Name, c.Revision, orDash(clip(c.Digest, 19)), orDash(c.PinnedBy))
	}
	fmt.Fprintln(w, "\nWAVE\tNAME\tDEVICES\tAWAY\tTHEN\tWHICH")
	for i, v := range p.Waves {
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%s\t%s\n", i+1, orDash(v.Name), len(v.Devices), v.Away, orDash(after(v.Approve, v.Pause)), orDash(clip(strings.Join(v.Devices, ","), 60)))
	}
	for i, l := range p.Links {
		if i == 0 {
			fmt.Fprintln(w, "\nLINK\tARTIFACTS\tBYTES")
		}
		fmt.Fprintf(w, "%s - %s\t%d\t%d\n", l.Parent, l.Child, l.Artifacts, l.Bytes)
	}
	for i, d := range p.Refused {
		if i == 0 {
			fmt.Fprintln(w, "\nLEFT OUT\tWHY")
		}
		fmt.Fprintf(w, "%s\t%s\n", d.Name, d.Why)
	}
	_ = w.Flush() // to a terminal or a buffer
	if p.Waits != "" {
		fmt.Fprintf(a.Out, "\nit would wait for rollout %s\n", p.Waits)
	}
}

func after(approve bool, pause api.Duration) string {
	var out []string
	if approve {
		out = append(out, "approval")
	}
	if pause > 0 {
		out = append(out, time.Duration(pause).String())
	}
	return strings.Join(out, ", ")
}

func (a *app) rolloutStatusCommand() *cobra.Command {
	var watch, devices bool
	c := &cobra.Command{Use: "status ROLLOUT", Short: "Say how far a rollout is, and when it may be through", Args: cobra.ExactArgs(1),
		Long: `Say how far a rollout is: its phase, each wave, devices that failed or were left out and
why, and an estimate by how long those took that are through. With --watch it goes on until
the rollout has ended, and exits with 1 when it did not complete.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if watch {
				return a.watchRollout(cmd.Context(), cl, args[0])
			}
			k, err := api.LookupKind(api.KindRollout)
			if err != nil {
				return err
			}
			o, err := cl.Get(cmd.Context(), k, args[0])
			if err != nil {
				return err
			}
			a.printRollout(o)
			if !devices {
				return nil
			}
			list, err := cl.RolloutDevices(cmd.Context(), args[0])
			if err == nil {
				fmt.Fprintln(a.Out)
				a.printRolloutDevices(list)
			}
			return err
		}}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on until it has ended")
	c.Flags().BoolVar(&devices, "devices", false, "list each device")
	return c
}

// watchRollout prints a line for each change until a rollout has ended.
func (a *app) watchRollout(ctx context.Context, cl *client.Client, name string) error {
	k, err := api.LookupKind(api.KindRollout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last, end api.RolloutStatus
	found := false
	err = cl.Watch(ctx, k, client.ListOptions{}, func(e client.Event) error {
		if e.Type == "synced" && !found {
			return &api.Error{Code: api.NotFound, Message: "there is no Rollout " + name, Remedy: "see `edgectl get rollouts`"}
		}
		if e.Object == nil || e.Object.Metadata.Name != name {
			return nil
		}
		found = true
		var s api.RolloutStatus
		_ = readStatus(e.Object, &s)
		if s.Phase != last.Phase || s.Wave != last.Wave || s.Devices != last.Devices || s.Message != last.Message {
			fmt.Fprintf(a.Out, "%s  wave %d of %d  %s\n", s.Phase, min(s.Wave, len(s.Waves)), len(s.Waves), counted(s))
		}
		if last = s; s.Phase.Ended() || e.Type == "deleted" {
			end = s
			cancel()
		}
		return nil
	})
	switch {
	case end.Phase == "":
		return err
	case end.Phase != api.RolloutComplete:
		return &api.Error{Code: api.Conflict, Message: "the rollout is " + string(end.Phase) + ": " + end.Message, Remedy: "see `edgectl rollout status " + name + " --devices`"}
	}
	return nil
}

func counted(s api.RolloutStatus) string {
	c := s.Devices
	var out []string
	for _, x := range []struct {
		n    int
		what string
	}{{c.Healthy, "healthy"}, {c.Given, "under way"}, {c.Waiting - c.Away, "waiting"}, {c.Away, "away"}, {c.Failed, "failed"}, {c.Skipped, "left out"}, {c.Restoring, "going back"}, {c.Restored, "back"}, {c.Kept, "kept"}} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	text := strings.Join(out, ", ")
	if s.Message != "" {
		text += ": " + s.Message
	}
	return text
}

func (a *app) printRollout(o *api.Object) {
	var s api.RolloutStatus
	var spec api.RolloutSpec
	_ = readStatus(o, &s)
	_ = readSpec(o, &spec)
	fmt.Fprintf(a.Out, "%s: %s", o.Metadata.Name, s.Phase)
	if text := counted(s); text != "" {
		fmt.Fprintf(a.Out, ", %s", text)
	}
	fmt.Fprintln(a.Out)
	if s.Estimate != nil {
		fmt.Fprintf(a.Out, "through at about %s\n", s.Estimate.Format(time.RFC3339))
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nCHANGE\tREVISION\tBEFORE\tALONG WITH")
	for _, c := range s.Change {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", strings.ToLower(c.Kind)+"/"+c.Name, c.Revision, c.Before, orDash(c.PinnedBy))
	}
	fmt.Fprintln(w, "\nWAVE\tNAME\tDEVICES\tHEALTHY\tUNDER WAY\tWAITING\tFAILED\tTHEN")
	for i, v := range s.Waves {
		var then string
		if i < len(spec.Waves) {
			then = after(spec.Waves[i].Approve, spec.Waves[i].Pause)
		}
		mark := ""
		if i+1 == s.Wave && !s.Phase.Ended() {
			mark = "▸"
		}
		fmt.Fprintf(w, "%s%d\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", mark, i+1, orDash(v.Name), v.All, v.Healthy, v.Given, v.Waiting, v.Failed, orDash(then))
	}
	_ = w.Flush() // to a terminal or a buffer
	if len(s.Unhappy) > 0 {
		fmt.Fprintln(a.Out)
		a.printRolloutDevices(s.Unhappy)
	}
}

func (a *app) printRolloutDevices(list []api.RolloutDevice) {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tSITE\tWAVE\tSTATE\tFOR\tWHY")
	for _, d := range list {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", d.Name, orDash(d.Site), d.Wave, d.State, a.age(d.Since), orDash(d.Why))
	}
	_ = w.Flush() // to a terminal or a buffer
}

func (a *app) rolloutRow(o *api.Object) []string {
	var s api.RolloutStatus
	var spec api.RolloutSpec
	_ = readStatus(o, &s)
	_ = readSpec(o, &spec)
	var names []string
	for _, c := range spec.Change {
		names = append(names, strings.ToLower(c.Kind)+"/"+c.Name)
	}
	c := s.Devices
	return []string{o.Metadata.Name, clip(strings.Join(names, ","), 40), orDash(string(s.Phase)), fmt.Sprintf("%d/%d", min(max(s.Wave, 0), len(s.Waves)), len(s.Waves)),
		strconv.Itoa(c.All), strconv.Itoa(c.Healthy), strconv.Itoa(c.Failed), strconv.Itoa(c.Away), a.age(o.Metadata.Created)}
}

// revisedArg reads KIND/NAME, or the name of a rollout.
func revisedArg(arg string) (kind, name string, err error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		return api.KindRollout, arg, nil
	}
	k, err := api.LookupKind(kind)
	if err == nil && k.Name != api.KindRollout && !api.HasRevisions(k.Name) {
		err = &api.Error{Code: api.Invalid, Field: arg, Message: "a " + k.Name + " has no revisions", Remedy: "name an app, config, secret, release, fleet, flow policy or network policy, as app/web"}
	}
	if err != nil {
		return "", "", err
	}
	return k.Name, name, nil
}

func (a *app) rolloutHistoryCommand() *cobra.Command {
	return &cobra.Command{Use: "history KIND/NAME", Short: "List the revisions of an object, and when all devices were given which", Args: cobra.ExactArgs(1),
		Example: "  edgectl rollout history app/web",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.revisions(cmd, args[0], "", 0)
		}}
}

func (a *app) rolloutUndoCommand() *cobra.Command {
	var to int64
	c := &cobra.Command{Use: "undo KIND/NAME | ROLLOUT", Short: "Go back to what was before", Args: cobra.ExactArgs(1),
		Long: `Go back to what was before. An object is made what it was, and all devices are given that
at once. A rollout that is under way is aborted; for one that has ended, another is made by
the same waves that goes the other way. Never does a revoked revision come back, nor a
release below the security floor of those that run.`,
		Example: "  edgectl rollout undo app/web\n  edgectl rollout undo app/web --to 7\n  edgectl rollout undo web-8",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, err := revisedArg(args[0])
			if err != nil {
				return err
			}
			if kind == api.KindRollout {
				return a.order(cmd, name, "undo")
			}
			return a.revisions(cmd, args[0], "undo", to)
		}}
	c.Flags().Int64Var(&to, "to", 0, "the revision to go back to (default: the one that all had before)")
	return c
}

func (a *app) revokeCommand() *cobra.Command {
	var revision int64
	c := &cobra.Command{Use: "revoke KIND/NAME --revision N", Short: "Take a revision back for good, such as a secret that leaked: nobody is given it any more", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.revisions(cmd, args[0], "revoke", revision)
		}}
	c.Flags().Int64Var(&revision, "revision", 0, "its number; see `edgectl rollout history`")
	_ = c.MarkFlagRequired("revision") // it is there
	return c
}

func (a *app) revisions(cmd *cobra.Command, arg, verb string, number int64) error {
	kind, name, err := revisedArg(arg)
	if err != nil {
		return err
	}
	if kind == api.KindRollout {
		return &api.Error{Code: api.Invalid, Field: arg, Message: "this is no object with revisions", Remedy: "write KIND/NAME, as app/web"}
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	h, err := cl.Revisions(cmd.Context(), kind, name, verb, number)
	if err != nil {
		return err
	}
	a.printHistory(h)
	return nil
}

func (a *app) printHistory(h *api.RevisionHistory) {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REVISION\tDIGEST\tAGE\tGIVEN\tPINS")
	for _, r := range h.Revisions {
		var given, pins []string
		if r.Revision == h.Given {
			given = append(given, "to all")
		}
		if r.Devices > 0 {
			given = append(given, fmt.Sprintf("to %d by itself", r.Devices))
		}
		if r.Revoked != nil {
			given = append(given, "revoked")
		}
		for _, p := range r.Pins {
			pins = append(pins, fmt.Sprintf("%s/%s@%d", strings.ToLower(p.Kind), p.Name, p.Revision))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", r.Revision, clip(r.Digest, 19), a.age(&r.Created), orDash(strings.Join(given, ", ")), orDash(strings.Join(pins, ",")))
	}
	fmt.Fprintln(w, "\nTIME\tALL WERE GIVEN\tBEFORE\tBY")
	for _, t := range slices.Backward(h.Turns) {
		by := "apply"
		if t.Rollout != "" {
			by = "rollout " + t.Rollout
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", t.Time.Format(time.RFC3339), t.Revision, t.Before, by)
	}
	_ = w.Flush() // to a terminal or a buffer
}

func (a *app) pinCommand(unpin bool) *cobra.Command {
	use, short := "pin DEVICE KIND/NAME", "Give a device a revision that no rollout and no apply overrules"
	if unpin {
		use, short = "unpin DEVICE KIND/NAME", "Let a device have what all have again"
	}
	var revision int64
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
		kind, name, err := revisedArg(args[1])
		if err == nil && kind == api.KindRollout {
			err = &api.Error{Code: api.Invalid, Field: args[1], Message: "this is no object with revisions", Remedy: "write KIND/NAME, as app/web"}
		}
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		return cl.PinDevice(cmd.Context(), args[0], kind, name, revision, unpin)
	}}
	if !unpin {
		c.Flags().Int64Var(&revision, "revision", 0, "its number (default: the newest)")
	}
	return c
}
