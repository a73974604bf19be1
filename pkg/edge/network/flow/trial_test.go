package flow

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

// tell passes time in steps.
func (t Tried) tell(d time.Duration, reached bool) Tried {
	for ; d > 0; d -= time.Second {
		t = t.Tick(time.Second, reached)
	}
	return t
}

func TestTried(t *testing.T) {
	a, b := json.RawMessage(`{"a":{}}`), json.RawMessage(`{"b":{}}`)
	good := Tried{}.Want(a).tell(time.Minute, true)
	if good.Phase != Kept || string(good.Good) != string(a) {
		t.Fatalf("%+v", good)
	}
	if x := good.tell(time.Hour, false); x.Phase != Kept {
		t.Errorf("what worked is taken back: %+v", x)
	}
	bad := good.Want(b).tell(4*time.Minute, false)
	if bad.Phase != OnTrial || string(bad.InForce()) != string(b) {
		t.Errorf("%+v", bad)
	}
	if bad = bad.tell(time.Minute, false); bad.Phase != Reverted || string(bad.InForce()) != string(a) {
		t.Errorf("%+v", bad)
	}
	if x := bad.tell(time.Minute, true); x.Phase != Guilty || string(x.InForce()) != string(a) || string(x.Want(b).InForce()) != string(a) {
		t.Errorf("it is tried again: %+v", x)
	} else if x = x.Want(a); x.Phase != Kept || string(x.InForce()) != string(a) {
		t.Errorf("the good ones again: %+v", x)
	} else if x = bad.Want(json.RawMessage(`{"c":{}}`)); x.Phase != OnTrial {
		t.Errorf("others are not tried: %+v", x)
	}
	if x := bad.tell(6*time.Minute, false); x.Phase != Innocent || string(x.InForce()) != string(b) || x.tell(time.Minute, true).Phase != Kept {
		t.Errorf("the parent was gone by itself: %+v", x)
	}
}

// Whatever happens, the box is back with what worked within ten minutes of silence that other
// policies made, and what it wants holds while the parent is reached with it.
func TestTriedHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cuts := map[string]bool{"": false, "1": false, "2": true, "3": true}
		var x Tried
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			x = x.Want(json.RawMessage(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "policies")))
			for range 1 + 11*60/20 {
				x = x.Tick(20*time.Second, !cuts[string(x.InForce())])
			}
			if cuts[string(x.InForce())] || cuts[string(x.Good)] || !cuts[string(x.Wanted)] && string(x.InForce()) != string(x.Wanted) {
				t.Fatalf("%+v", x)
			}
		}
	})
}

// Without the check a box stays cut off.
func TestTrialChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	mutation.Prove(t, mutation.Marked(t, "^TestTried$", "trial.go")...)
}

// Policies that cut the box off go by themselves, also when it starts anew meanwhile, and are told of.
func TestTrial(t *testing.T) {
	var mu sync.Mutex
	var now map[string]api.FlowPolicySpec
	var kept notes
	var clock atomic.Int64
	held := func() map[string]api.FlowPolicySpec {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	start := func() (*Trial, func()) {
		tr := NewTrial(TrialConfig{Notes: &kept, Every: time.Millisecond, Log: slog.New(slog.DiscardHandler),
			Now: func() time.Time { return time.Unix(1_800_000_000, clock.Add(int64(5*time.Second))) },
			Set: func(p map[string]api.FlowPolicySpec) {
				mu.Lock()
				defer mu.Unlock()
				now = p
			},
			Reached: func(context.Context) bool { _, cut := held()["cut"]; return !cut }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- tr.Run(ctx) }()
		return tr, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	phase := func(tr *Trial) Phase { tr.mu.Lock(); defer tr.mu.Unlock(); return tr.t.Phase }
	tr, stop := start()
	fine := map[string]api.FlowPolicySpec{"fine": {Priority: 7}}
	tr.Set(fine)
	wait.Until(t, "policies that work are kept", func() bool { return phase(tr) == Kept })
	both := map[string]api.FlowPolicySpec{"fine": {Priority: 7}, "cut": {}}
	tr.Set(both)
	stop()
	tr, stop = start()
	defer func() { stop() }()
	tr.Set(both)
	wait.Seen(t, "those that cut it off are gone", func() (any, bool) {
		return held(), phase(tr) == Guilty && len(held()) == 1 && held()["fine"].Priority == 7
	})
	if w := tr.Warnings(); len(w) != 1 || w[0].Name != "flow-reverted" {
		t.Errorf("%+v", w)
	}
	tr.Set(nil)
	wait.Until(t, "none are wanted, and none hold", func() bool { return len(held()) == 0 && phase(tr) == Kept && len(tr.Warnings()) == 0 })
}
