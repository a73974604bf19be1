package rollout_test

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/rollout"
	"tributary.dev/tributary/pkg/core/rollout/simfleet"
)

var t0 = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

var app = []api.RevisionRef{{Kind: api.KindApp, Name: "web", Revision: 2}}

// drawSpec draws a rollout whose waves may be anything.
func drawSpec(t *rapid.T) api.RolloutSpec {
	s := api.RolloutSpec{Change: app, OnFailure: rapid.SampledFrom([]string{"", api.FailurePause, api.FailureRollback}).Draw(t, "onFailure")}
	if rapid.Bool().Draw(t, "config") {
		s.Change = []api.RevisionRef{{Kind: api.KindConfig, Name: "c"}}
	}
	for range rapid.IntRange(0, 4).Draw(t, "waves") {
		w := api.RolloutWave{Approve: rapid.Bool().Draw(t, "approve"), Pause: api.Duration(rapid.IntRange(0, 20).Draw(t, "pause")) * api.Duration(time.Minute)}
		switch rapid.IntRange(0, 2).Draw(t, "by") {
		case 0:
			w.Devices = rapid.IntRange(1, 5).Draw(t, "devices")
		case 1:
			w.Percent = rapid.Float64Range(0.5, 100).Draw(t, "percent")
		case 2:
			w.Selector = &api.Selector{MatchLabels: map[string]string{"ring": "early"}}
		}
		s.Waves = append(s.Waves, w)
	}
	amount := func(name string) *api.Amount {
		switch rapid.IntRange(0, 2).Draw(t, name) {
		case 0:
			return &api.Amount{Devices: rapid.IntRange(0, 10).Draw(t, name+" devices")}
		case 1:
			return &api.Amount{Percent: rapid.Float64Range(1, 100).Draw(t, name+" percent")}
		}
		return nil
	}
	s.MinHealthy, s.MaxFailures = amount("minHealthy"), amount("maxFailures")
	s.AtOnce, s.PerSite = rapid.IntRange(0, 10).Draw(t, "atOnce"), rapid.IntRange(0, 3).Draw(t, "perSite")
	if rapid.Bool().Draw(t, "hours") {
		s.Hours = "22:00-04:30"
	}
	return s
}

// Whatever fails and whoever goes away: the budget holds at every moment, every wave and so the
// rollout ends, nobody is tossed to and fro, and a rollback leaves what stood before.
func TestPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := func(name string) float64 {
			return rapid.SampledFrom([]float64{0, 0, 0.05, 0.5, 1}).Draw(t, name)
		}
		cfg := simfleet.Config{Spec: drawSpec(t), Devices: rapid.IntRange(0, 40).Draw(t, "n"), PerSite: rapid.IntRange(0, 12).Draw(t, "a site's"),
			SiteMax: rapid.IntRange(1, 4).Draw(t, "site max"), Total: rapid.IntRange(1, 20).Draw(t, "total"), Seed: rapid.Uint64().Draw(t, "seed"),
			Breaks: share("breaks") / 3, Hangs: share("hangs") / 3, Flaps: share("flaps") / 3, Away: share("away") / 2, Gone: share("gone") / 2, Meddled: share("meddled"),
			Orders: rapid.SliceOfN(rapid.SampledFrom([]string{rollout.Resume, rollout.Promote, rollout.Abort, rollout.Keep}), 0, 5).Draw(t, "orders"),
			Tick:   time.Minute, Limit: 30 * 24 * time.Hour}
		if _, err := simfleet.Run(cfg); err != nil {
			t.Fatal(err)
		}
	})
}

// A decision that is asked for again, with nothing new, has nothing to say.
func TestDecideIsSettled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		devices := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) rollout.Device {
			return rollout.Device{Wave: rapid.IntRange(0, rollout.Waves(&spec)-1).Draw(t, "wave"), State: rollout.Waiting, Since: t0, Online: rapid.Bool().Draw(t, "online"), Site: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "site")}
		}), 0, 12).Draw(t, "devices")
		for i := range devices {
			devices[i].ID = string(rune('a' + i))
		}
		budget := rollout.Budget{Left: 5, Sites: map[string]rollout.Site{"a": {Max: 1}, "b": {Max: 2}}}
		p, steps := rollout.Decide(&spec, rollout.Progress{Phase: api.RolloutRunning, WaveSince: t0}, devices, budget, t0)
		for _, s := range steps {
			i := int(s.Device.ID[0] - 'a')
			devices[i] = s.Device
			if s.Device.Slot && s.Do == rollout.Give {
				budget.Left--
				if site, ok := budget.Sites[s.Device.Site]; ok {
					site.Taken++
					budget.Sites[s.Device.Site] = site
				}
			}
		}
		p2, again := rollout.Decide(&spec, p, devices, budget, t0)
		if p2 != p || len(again) > 0 {
			t.Fatalf("the second look says %+v and %v after %+v", p2, again, p)
		}
	})
}

// Each device has exactly one wave, a selector takes only those that it picks, and a number no more.
func TestAssign(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := drawSpec(t)
		list := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) rollout.Candidate {
			return rollout.Candidate{ID: rapid.StringMatching(`[a-z]{3}`).Draw(t, "id"), Site: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "site"),
				Labels: map[string]string{"ring": rapid.SampledFrom([]string{"early", "late"}).Draw(t, "ring")}}
		}), 0, 40, func(c rollout.Candidate) string { return c.ID }).Draw(t, "devices")
		waves := rollout.Assign(&spec, "salt", list)
		sizes := map[int]int{}
		for _, c := range list {
			n, ok := waves[c.ID]
			if !ok || n < 0 || n >= rollout.Waves(&spec) {
				t.Fatalf("%s has the wave %d of %d", c.ID, n, rollout.Waves(&spec))
			}
			sizes[n]++
			if sel := rollout.WaveOf(&spec, n).Selector; sel != nil && !sel.Matches(c.Labels) {
				t.Fatalf("wave %d takes %s, which it does not pick", n, c.ID)
			}
		}
		for n, w := range spec.Waves {
			if w.Devices > 0 && sizes[n] > w.Devices {
				t.Fatalf("wave %d of %d devices has %d", n, w.Devices, sizes[n])
			}
		}
		if !reflect.DeepEqual(waves, rollout.Assign(&spec, "salt", list)) {
			t.Fatal("asked again, it says otherwise")
		}
	})
}

// play goes through looks at a fleet by hand.
type play struct {
	t       *testing.T
	spec    api.RolloutSpec
	p       rollout.Progress
	devices []rollout.Device
	now     time.Time
	site    int
}

func (s *play) look(want api.RolloutPhase) {
	s.t.Helper()
	b := rollout.Budget{Left: 100, Sites: map[string]rollout.Site{}}
	for _, d := range s.devices {
		site := b.Sites[d.Site]
		site.Max = s.site
		if d.Slot {
			site.Taken++
			if d.Relay {
				site.Relays++
			}
		}
		b.Sites[d.Site] = site
	}
	var steps []rollout.Step
	s.p, steps = rollout.Decide(&s.spec, s.p, s.devices, b, s.now)
	for _, step := range steps {
		for i := range s.devices {
			if s.devices[i].ID == step.Device.ID {
				s.devices[i] = step.Device
			}
		}
	}
	if s.p.Phase != want {
		s.t.Fatalf("it is %s (%s); %s is wanted. %+v", s.p.Phase, s.p.Message, want, s.devices)
	}
}

func (s *play) in(state rollout.State) (names string) {
	for _, d := range s.devices {
		if d.State == state {
			names += d.ID
		}
	}
	return names
}

func (s *play) is(state rollout.State, want string) {
	s.t.Helper()
	if got := s.in(state); got != want {
		s.t.Fatalf("%s are %s; %s is wanted", got, state, want)
	}
}

func (s *play) order(o string) {
	s.t.Helper()
	p, steps, err := rollout.Order(&s.spec, s.p, s.devices, o, s.now)
	if err != nil {
		s.t.Fatal(err)
	}
	s.p = p
	for _, step := range steps {
		for i := range s.devices {
			if s.devices[i].ID == step.Device.ID {
				s.devices[i] = step.Device
			}
		}
	}
}

func (s *play) all(h rollout.Health) {
	for i := range s.devices {
		s.devices[i].Health = h
	}
}

func fleet(t *testing.T, waves string, spec api.RolloutSpec) *play {
	s := &play{t: t, spec: spec, p: rollout.Progress{Phase: api.RolloutRunning, WaveSince: t0}, now: t0, site: 10}
	s.spec.Change = app
	for i, w := range waves {
		s.devices = append(s.devices, rollout.Device{ID: string(rune('a' + i)), Site: "s", Wave: int(w - '0'), State: rollout.Waiting, Online: true, Since: t0})
	}
	return s
}

func TestCanaryWaitsForApproval(t *testing.T) {
	s := fleet(t, "0111", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 1, Approve: true}}})
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "a")
	s.all(rollout.Well)
	s.look(api.RolloutRunning)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutWaiting)
	s.now = s.now.Add(100 * time.Hour)
	s.look(api.RolloutWaiting)
	s.is(rollout.Given, "")
	s.order(rollout.Approve)
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "bcd")
	s.all(rollout.Well)
	s.look(api.RolloutRunning)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutComplete)
	s.is(rollout.Healthy, "abcd")
}

func TestSoakBeginsAnew(t *testing.T) {
	s := fleet(t, "0", api.RolloutSpec{})
	s.look(api.RolloutRunning)
	for range 3 {
		s.all(rollout.Well)
		s.look(api.RolloutRunning)
		s.now = s.now.Add(50 * time.Second)
		s.all(rollout.Unknown)
		s.look(api.RolloutRunning)
	}
	s.now = s.now.Add(10 * time.Minute)
	s.look(api.RolloutPaused)
	s.is(rollout.Failed, "a")
}

func TestFailureRollsBack(t *testing.T) {
	s := fleet(t, "0011", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 2}}, OnFailure: api.FailureRollback})
	s.look(api.RolloutRunning)
	s.devices[0].Health, s.devices[1].Health, s.devices[1].Told = rollout.Well, rollout.Broken, "exit code 1"
	s.look(api.RolloutRollingBack)
	s.is(rollout.Restoring, "ab")
	if !strings.Contains(s.p.Message, "1 of 4") {
		t.Fatal(s.p.Message)
	}
	s.all(rollout.Well)
	s.look(api.RolloutRollingBack)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutRolledBack)
	s.is(rollout.Restored, "ab")
	s.is(rollout.Waiting, "cd")
}

func TestRollbackLeaves(t *testing.T) {
	s := fleet(t, "000", api.RolloutSpec{})
	s.look(api.RolloutRunning)
	s.devices[0].Barred, s.devices[1].Changed = "release 4 lies below the security floor 5", "somebody gave it revision 7"
	s.order(rollout.Abort)
	s.look(api.RolloutRollingBack)
	s.is(rollout.Kept, "ab")
	s.is(rollout.Restoring, "c")
	s.all(rollout.Well)
	s.look(api.RolloutRollingBack)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutRolledBack)
	if s.devices[0].Why != s.devices[0].Barred || s.devices[1].Why != s.devices[1].Changed {
		t.Fatalf("%+v", s.devices)
	}
}

func TestAwayIsNoFailure(t *testing.T) {
	s := fleet(t, "000", api.RolloutSpec{})
	s.devices[2].Online = false
	s.look(api.RolloutRunning)
	s.all(rollout.Well)
	s.look(api.RolloutRunning)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutComplete)
	if s.is(rollout.Waiting, "c"); s.p.Message == "" {
		t.Fatal("nothing is said of the one that is away")
	}
	s.devices[2].Online, s.devices[2].Health = true, rollout.Unknown
	s.look(api.RolloutComplete)
	s.is(rollout.Given, "c")
	s.all(rollout.Well)
	s.look(api.RolloutComplete)
	s.now = s.now.Add(time.Minute)
	s.look(api.RolloutComplete)
	s.is(rollout.Healthy, "abc")
}

// A wave that nobody answers from does not pass, and does not hang either.
func TestDarkWavePauses(t *testing.T) {
	s := fleet(t, "01", api.RolloutSpec{Waves: []api.RolloutWave{{Devices: 1}}})
	s.look(api.RolloutRunning)
	s.devices[0].Online = false
	s.now = s.now.Add(10 * time.Minute)
	s.look(api.RolloutPaused)
	s.is(rollout.Given, "")
	s.order(rollout.Promote)
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "b")
}

func TestOneRelayOfASite(t *testing.T) {
	s := fleet(t, "0000", api.RolloutSpec{})
	s.devices[0].Relay, s.devices[1].Relay = true, true
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "acd")
}

// The budget of all, of a site, and a device that another rollout has under way.
func TestBudgets(t *testing.T) {
	for name, x := range map[string]struct {
		budget rollout.Budget
		want   string
	}{
		"all":   {rollout.Budget{Left: 1, Sites: map[string]rollout.Site{"s": {Max: 9}}}, "a"},
		"site":  {rollout.Budget{Left: 9, Sites: map[string]rollout.Site{"s": {Max: 3, Taken: 1}}}, "ab"},
		"other": {rollout.Budget{Left: 9, Sites: map[string]rollout.Site{"s": {Max: 9}}, Others: map[string]bool{"b": true}}, "acd"},
	} {
		s := fleet(t, "0000", api.RolloutSpec{})
		_, steps := rollout.Decide(&s.spec, s.p, s.devices, x.budget, s.now)
		given := ""
		for _, step := range steps {
			given += step.Device.ID
		}
		if given != x.want {
			t.Errorf("%s: %q are given it over the budget; want %q", name, given, x.want)
		}
	}
}

func TestHoursAndExpiry(t *testing.T) {
	end := t0.Add(11 * time.Hour)
	s := fleet(t, "00", api.RolloutSpec{Hours: "22:00-02:00", Expires: &end, AtOnce: 1})
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "")
	s.now = t0.Add(10*time.Hour + 57*time.Minute)
	s.look(api.RolloutRunning)
	s.is(rollout.Given, "a")
	if !s.devices[0].Until.Equal(end) {
		t.Fatalf("its permit lasts until %s, past the end of the rollout", s.devices[0].Until)
	}
	s.now = end
	s.look(api.RolloutRunning) // it may end what it began
	s.now = end.Add(10 * time.Minute)
	s.look(api.RolloutExpired)
	s.is(rollout.Waiting, "b")
}

// Ten thousand devices of which much fails, within a minute; SIM=1 plays more of them.
func TestTenThousand(t *testing.T) {
	cfg := simfleet.Large(1)
	if os.Getenv("SIM") == "" {
		cfg.Devices = 1000
	}
	began := time.Now()
	res, err := simfleet.Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d devices: %s after %s in %d looks, %s; %v %q", cfg.Devices, res.Phase, res.Took, res.Looks, time.Since(began).Round(time.Millisecond), res.Counts, res.Stopped)
	if res.Phase != api.RolloutComplete || res.Counts[rollout.Healthy] < cfg.Devices*9/10 {
		t.Fatalf("%+v", res)
	}
	if os.Getenv("SIM") == "" {
		return
	}
	for seed := uint64(2); seed < 12; seed++ {
		if res, err = simfleet.Run(simfleet.Large(seed)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		t.Logf("seed %d: %s after %s, %v", seed, res.Phase, res.Took, res.Counts)
	}
}
