package story

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"tributary.dev/tributary/tests/lab"
)

// CoredArgs are what the story needs of cored: devices keep the records that no
// backup holds yet, so that their own logs can be held against the ledger.
var CoredArgs = []string{"--keep-unbacked"}

// Play is the whole story.
func (s *Story) Play(ctx context.Context) error {
	steps := []func(context.Context) error{s.Raise, s.Deploy, s.CutAndRestart, s.Heal, s.Account}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Raise starts the core and the boxes, and waits for them to enrol.
func (s *Story) Raise(ctx context.Context) error {
	s.Say("starting cored, then %d boxes, each with its own containerd and edged", len(s.tree().Names()))
	if err := s.tree().StartCore(ctx); err != nil {
		return err
	}
	if err := s.tree().Join(ctx); err != nil {
		return err
	}
	if err := s.tree().StartBoxes(ctx); err != nil {
		return err
	}
	if err := s.Enrolled(ctx); err != nil {
		return err
	}
	s.Say("all boxes enrolled %s", cmp.Or(s.Joined, "by join token"))
	return s.show(ctx, "get", "devices")
}

// Deploy pushes the images, applies the app and waits until it answers everywhere.
func (s *Story) Deploy(ctx context.Context) error {
	s.Say("making OCI images of Debian's nginx and redis, and pushing them to the core's registry")
	if err := s.PushImages(ctx); err != nil {
		return err
	}
	s.Say("applying the app to the fleet role=field")
	if err := s.Apply(ctx, "v1.yaml"); err != nil {
		return err
	}
	if err := s.RunningEverywhere(ctx); err != nil {
		return err
	}
	if err := s.AnswerEverywhere(ctx, "version 1"); err != nil {
		return err
	}
	s.Say("the app is Running on %s and answers: version 1", strings.Join(s.Fields, ", "))
	return s.show(ctx, "get", "devices")
}

// CutAndRestart takes the aggregation relay's uplink away, cuts the power of a field
// device, and changes the app meanwhile.
func (s *Story) CutAndRestart(ctx context.Context) error {
	victim := s.tree().Box(s.Fields[1])
	name := s.Fields[1]
	cut := cmp.Or(s.Cut, "agg-1")
	if err := s.tree().Box(cut).CutUplink(ctx); err != nil {
		return err
	}
	s.Say("cut the uplink of %s: nobody below reaches the core", cut)
	before, err := s.recorded(ctx, name)
	if err != nil {
		return err
	}
	counted, err := linkBytes(ctx, victim)
	if err != nil {
		return err
	}
	s.lost = map[string]map[string]float64{name: counted}
	if err := victim.PowerCut(); err != nil {
		return err
	}
	if _, err := victim.AskApp(ctx); err == nil {
		return errors.New("the app still answers after a power cut")
	}
	s.Say("cut the power of %s: edged, containerd and the app are gone", name)
	if err := s.Apply(ctx, "v2.yaml"); err != nil {
		return err
	}
	s.Say("the core has version 2 now, and cannot tell anybody")
	if err := victim.Start(ctx); err != nil {
		return err
	}
	if err := s.Answers(ctx, name, "version 1"); err != nil {
		return err
	}
	s.Say("%s is back and runs version 1, with nobody above", name)
	for _, f := range s.Fields {
		from := before
		if f != name {
			if from, err = s.recorded(ctx, f); err != nil {
				return err
			}
		}
		if _, err := s.Grown(ctx, f, from); err != nil {
			return err
		}
	}
	s.Say("usage records accumulate on the devices")
	return nil
}

// Heal brings the link back and waits for the new version.
func (s *Story) Heal(ctx context.Context) error {
	if err := s.tree().Box(cmp.Or(s.Cut, "agg-1")).HealUplink(ctx); err != nil {
		return err
	}
	s.Say("the link is back")
	if err := s.AnswerEverywhere(ctx, "version 2"); err != nil {
		return err
	}
	if err := s.RunningEverywhere(ctx); err != nil {
		return err
	}
	s.Say("all run version 2")
	return nil
}

// Account holds the core's ledger against each device's own log, and prints both tables.
func (s *Story) Account(ctx context.Context) error {
	all := map[string]map[string]lab.Totals{}
	for _, f := range s.Fields {
		sums, err := s.Counted(ctx, f)
		if err != nil {
			return err
		}
		all[f] = sums
	}
	s.Say("records drained: the ledger equals each device's own log, record for record")
	s.UsageTable(all)
	if err := s.LinkTable(ctx); err != nil {
		return err
	}
	fmt.Fprintln(s.Out)
	return s.show(ctx, "get", "devices")
}

// show prints what edgectl prints.
func (s *Story) show(ctx context.Context, args ...string) error {
	out, err := s.tree().Edgectl(ctx, "", args...)
	if err != nil {
		return err
	}
	fmt.Fprintln(s.Out)
	for line := range strings.Lines(out) {
		fmt.Fprint(s.Out, "  ", line)
	}
	fmt.Fprintln(s.Out)
	return nil
}
