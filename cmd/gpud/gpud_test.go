//go:build cgo

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"

	"tributary.dev/tributary/cmd/gpud/mockdriver"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
	"tributary.dev/tributary/tests/wait"
)

// mockCards names the file with the state of a mock driver, in the environment of a gpud that
// is this test's own binary.
const mockCards = "TRIBUTARY_TEST_MOCK_CARDS"

func TestMain(m *testing.M) {
	path := os.Getenv(mockCards)
	if path == "" {
		wait.Leaks(m)
		return
	}
	d, err := mockdriver.New(path, gpus.A100_SXM4_40GB)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(with(d, os.Stdin, os.Stdout))
}

// machine is a box with one card: its gpud, kept, and its journal.
type machine struct {
	*gpud.Keeper
	up      chan gpud.Hello
	started chan *os.Process // gpuds, to be killed
	journal map[string][]accel.Step
}

func (m *machine) Get(card string) ([]accel.Step, error) { return m.journal[card], nil }

func (m *machine) Put(card string, steps []accel.Step) error {
	m.journal[card] = steps
	return nil
}

// child is a gpud as the agent starts it, whose number the test wants.
type child struct {
	io.Reader
	io.Writer
	cmd *exec.Cmd
	in  io.Closer
}

func (c *child) Close() error {
	_ = c.in.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	return nil
}

// boot is an agent that starts; the second result is its end.
func boot(t *testing.T, path string, journal map[string][]accel.Step) (*machine, func()) {
	t.Helper()
	m := &machine{up: make(chan gpud.Hello, 1000), started: make(chan *os.Process, 1000), journal: journal}
	start := func() (gpud.Process, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), mockCards+"="+path)
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		m.started <- cmd.Process
		return &child{out, in, cmd, in}, nil
	}
	m.Keeper = gpud.Keep(gpud.Config{Start: start, Events: func(gpud.Event) {}, Again: func(h gpud.Hello) { m.up <- h },
		Log: slog.New(slog.DiscardHandler), Pause: func(int) time.Duration { return 0 }})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	wait.For(t, "gpud's first answer", m.up)
	return m, func() {
		cancel()
		running.Wait()
	}
}

// again asks until gpud has answered: it may just be killed.
func again[T any](t *testing.T, what string, ask func() (T, error)) (out T) {
	t.Helper()
	wait.Seen(t, what, func() (any, bool) {
		var err error
		out, err = ask()
		return err, err == nil
	})
	return out
}

// TestKilledAtRandom asks one card for slices and gives them back, while gpud is killed
// at random and, every few rounds, the agent ends and starts anew. Each time the card comes
// to be as planned, and the slice that is busy all along stays.
func TestKilledAtRandom(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	path := filepath.Join(t.TempDir(), "cards")
	journal := map[string][]accel.Step{}
	m, end := boot(t, path, journal)
	defer func() { end() }()
	random := rand.New(rand.NewPCG(4, 2))
	card := again(t, "the inventory", func() ([]gpud.Card, error) { return m.Cards(t.Context()) })[0].Accelerator.ID
	again(t, "MIG on", func() (*api.MIG, error) { return m.SetMIG(t.Context(), card, true) })
	killed := 0
	for round := range rounds {
		layout := again(t, "the layout", func() (*api.MIG, error) { return m.Layout(t.Context(), card) })
		// One slice is busy from the second round on: edged says so, of what a service holds.
		held := hold(layout)
		names := []string{"1g.5gb", "2g.10gb", "3g.20gb", "1g.10gb"}
		wants := []accel.Want{{Profile: names[random.IntN(len(names))]}, {Profile: names[random.IntN(len(names))]}}
		plan, err := accel.PlanMIG(layout, wants, nil)
		if err != nil {
			plan, err = accel.PlanMIG(layout, wants[:1], nil)
		}
		if err != nil {
			continue // what is held leaves no room
		}
		done := make(chan error, 1)
		go func() { done <- accel.Change(t.Context(), m, m, card, plan.Steps) }()
		// Kill it at a place that chance chooses: it may be loading, reading, cutting or idle.
		kills := random.IntN(3)
		for range kills {
			select {
			case p := <-m.started:
				for range random.IntN(4) {
					_, _ = m.Layout(t.Context(), card)
				}
				if p.Kill() == nil { // one that ended by itself is known as such
					killed++
				}
			default:
			}
		}
		err = wait.For(t, "the change's end", done)
		if round%4 == 3 { // the agent ends too, and another begins with what is on the disk
			end()
			m, end = boot(t, path, journal)
		}
		for err != nil {
			if api.CodeOf(err) != api.Unavailable {
				t.Fatal(err)
			}
			again(t, "gpud to answer again", func() (*api.MIG, error) { return m.Layout(t.Context(), card) })
			err = accel.Resume(t.Context(), m, m, card)
		}
		now := again(t, "the layout after", func() (*api.MIG, error) { return m.Layout(t.Context(), card) })
		check(t, now, plan, held)
	}
	t.Logf("%d rounds, gpud killed %d times", rounds, killed)
	reboot(t, m, end, path, card, journal)
	end = func() {}
}

// hold marks one slice busy, and tells which.
func hold(m *api.MIG) *api.MIGInstance {
	if len(m.Instances) == 0 {
		return nil
	}
	for i := range m.Instances {
		if m.Instances[i].Placement.Size <= 2 {
			m.Instances[i].Busy = true
			return &m.Instances[i]
		}
	}
	return nil
}

func check(t *testing.T, now *api.MIG, plan accel.Plan, held *api.MIGInstance) {
	t.Helper()
	there := map[string]bool{}
	for _, i := range now.Instances {
		if i.Compute < 0 || i.UUID == "" {
			t.Errorf("%+v is half made", i)
		}
		there[fmt.Sprint(i.Profile, i.Placement)] = true
	}
	for _, p := range plan.Places {
		if !there[fmt.Sprint(p.Profile, p.At)] {
			t.Errorf("no %s at %s: %+v", p.Name, p.At, now.Instances)
		}
	}
	if held != nil && !there[fmt.Sprint(held.Profile, held.Placement)] {
		t.Errorf("the busy %s at %s is gone", held.Name, held.Placement)
	}
}

// reboot takes the machine down and up: the card has forgotten its slices and its mode.
func reboot(t *testing.T, m *machine, end func(), path, card string, journal map[string][]accel.Step) {
	t.Helper()
	had := again(t, "the layout", func() (*api.MIG, error) { return m.Layout(t.Context(), card) })
	kept := accel.Keep(card, had, accel.Kept{})
	end()
	d, err := mockdriver.New(path, gpus.A100_SXM4_40GB)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Reboot(false); err != nil {
		t.Fatal(err)
	}
	m, end = boot(t, path, journal)
	defer end()
	if err := accel.Restore(t.Context(), m, m, kept); err != nil {
		t.Fatal(err)
	}
	now := again(t, "the layout", func() (*api.MIG, error) { return m.Layout(t.Context(), card) })
	if got := accel.Keep(card, now, accel.Kept{}); !reflect.DeepEqual(got, kept) {
		t.Errorf("after the reboot %+v, before %+v", got, kept)
	}
}

// TestEndsWithTheAgent: gpud ends when its input does; that is all the agent's death shows.
func TestEndsWithTheAgent(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), mockCards+"="+filepath.Join(t.TempDir(), "cards"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestRealCard holds the inventory against nvidia-smi, read only.
func TestRealCard(t *testing.T) {
	smi, err := exec.LookPath("nvidia-smi")
	if err != nil {
		t.Skip("needs a card of NVIDIA's with its driver: there is no nvidia-smi here")
	}
	raw, err := exec.CommandContext(t.Context(), smi, "-q", "-x").Output()
	if err != nil {
		t.Skipf("needs a card of NVIDIA's with its driver: nvidia-smi: %v", err)
	}
	var in, out bytes.Buffer
	for _, q := range []gpud.Request{{ID: 1, Op: gpud.OpHello, Version: gpud.Version}, {ID: 2, Op: gpud.OpCards}} {
		if err := gpud.Write(&in, q); err != nil {
			t.Fatal(err)
		}
	}
	if code := serve(&in, &out); code != 0 {
		t.Fatalf("exit %d", code)
	}
	var a gpud.Reply
	for a.ID != 2 {
		if err := gpud.Read(&out, &a); err != nil {
			t.Fatal(err)
		}
	}
	cards := fieldsOf(t, raw)
	if len(cards) != len(a.Cards) {
		t.Fatalf("%d cards, nvidia-smi has %d", len(a.Cards), len(cards))
	}
	for i, c := range a.Cards {
		for path, got := range c.Details {
			if moves(path) {
				continue
			}
			if want, ok := cards[i][path]; ok && !strings.EqualFold(strings.TrimPrefix(want, "0x"), strings.TrimPrefix(got, "0x")) {
				t.Errorf("card %d, %s: %q, nvidia-smi says %q", i, path, got, want)
			}
		}
	}
}

// moves says that a field is another a moment later.
func moves(path string) bool {
	for _, part := range []string{"used", "free", "power_draw", "clocks/", "temp", "utilization/", "current_link", "performance_state"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return false
}
