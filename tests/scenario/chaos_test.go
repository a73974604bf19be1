package scenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// TestChaos changes the app round after round and kills one party of the tree with
// SIGKILL at a random moment of each: edged or containerd of any box, relays included,
// or cored. After every round the tree must reach the same end state, and the service
// that did not change must not have been restarted. TRIBUTARY_CHAOS sets the rounds
// (make chaos: 50); the seed is printed, and TRIBUTARY_SEED plays it again. With
// TRIBUTARY_BROKER=mosquitto the core's broker is one more victim.
func TestChaos(t *testing.T) {
	rounds, seed := envInt("TRIBUTARY_CHAOS", 3), envInt("TRIBUTARY_SEED", int(time.Now().UnixNano()))
	t.Logf("rounds %d, seed %d", rounds, seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	s := raiseWith(t, lab.Spec{Boxes: lab.Tree(), Broker: os.Getenv("TRIBUTARY_BROKER")})
	ctx := t.Context()
	up(ctx, t, s)
	before := cachePIDs(ctx, t, s)
	for round := range rounds {
		version := 2 - round%2
		v := victims(s)
		victim := v[rng.IntN(len(v))]
		delay := time.Duration(rng.IntN(3000)) * time.Millisecond
		t.Logf("round %d: version %d, SIGKILL for %s after %s", round+1, version, victim.name, delay)
		killed := make(chan error, 1)
		go func() {
			time.Sleep(delay) // the random moment: this is what is tested
			killed <- victim.killAndRestart(ctx)
		}()
		applyErr := s.Apply(ctx, fmt.Sprintf("v%d.yaml", version))
		must(t, <-killed)
		if applyErr != nil { // cored died under the request: a person would try again
			must(t, s.Apply(ctx, fmt.Sprintf("v%d.yaml", version)))
		}
		must(t, s.AnswerEverywhere(ctx, fmt.Sprintf("version %d", version)))
		must(t, s.RunningEverywhere(ctx))
		if after := cachePIDs(ctx, t, s); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Fatalf("round %d: the unchanged service was restarted: processes were %v, are %v", round+1, before, after)
		}
	}
	must(t, s.Enrolled(ctx))
	must(t, s.Account(ctx))
}

type victim struct {
	name           string
	killAndRestart func(context.Context) error
}

func victims(s *story.Story) []victim {
	out := []victim{{"cored", func(ctx context.Context) error { s.Lab.KillCore(); return s.Lab.StartCore(ctx) }}}
	if s.Lab.Broker != "" {
		out = append(out, victim{"the broker", func(ctx context.Context) error { s.Lab.KillBroker(); return s.Lab.StartBroker(ctx) }})
	}
	for name, b := range s.Lab.Boxes {
		out = append(out,
			victim{name + "'s edged", func(ctx context.Context) error { b.KillEdged(); return b.StartEdged(ctx) }},
			victim{name + "'s containerd", func(ctx context.Context) error { b.KillContainerd(); return b.StartContainerd(ctx) }})
	}
	return out
}

var taskPID = regexp.MustCompile(`(?m)^(\S*cache\S*)\s+(\d+)\s+RUNNING`)

// cachePIDs returns, for each field box, the process of the service that no version changes.
func cachePIDs(ctx context.Context, t *testing.T, s *story.Story) map[string]string {
	t.Helper()
	pids := map[string]string{}
	for _, f := range s.Fields {
		must(t, lab.Until(ctx, f+": the cache runs", s.Wait, func(ctx context.Context) error {
			out, err := s.Lab.Boxes[f].Ctr(ctx, "task", "ls")
			if err != nil {
				return err
			}
			m := taskPID.FindStringSubmatch(out)
			if m == nil {
				return fmt.Errorf("no running cache in %q", out)
			}
			pids[f] = m[2]
			return nil
		}))
	}
	return pids
}

func envInt(name string, def int) int {
	if v, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return v
	}
	return def
}
