package workload

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// model is a device without containerd: it does what plan says, one action after
// another, and lets processes live and die.
type model struct {
	t        *rapid.T
	w        world
	seq      int
	behave   map[string]behaviour // by hash
	launches map[serviceKey]int
	dropped  map[string]int
}

// behaviour is how every container of one hash turns out.
type behaviour struct {
	Exit  int // -1: runs for ever
	Sick  bool
	Check bool
	Break bool // cannot be launched at all
}

func newModel(t *rapid.T) *model {
	return &model{t: t, behave: map[string]behaviour{}, launches: map[serviceKey]int{}, dropped: map[string]int{}, w: world{
		Now: time.Unix(1_000_000, 0), Images: map[string]imageState{}, Rejected: map[serviceKey]rejection{},
		LaunchFailed: map[serviceKey]launchFailure{}, Busy: map[serviceKey]bool{},
	}}
}

func (m *model) find(id string) *instance {
	for i := range m.w.Instances {
		if m.w.Instances[i].ID == id {
			return &m.w.Instances[i]
		}
	}
	return nil
}

func (m *model) start(in *instance) {
	b := m.behave[in.Hash]
	if in.Phase == phaseRunning {
		m.t.Fatalf("started %s, which runs", in.ID)
	}
	if in.Phase == phaseStopped || in.Finished {
		in.Restarts++
	}
	in.Phase, in.Started, in.Ended, in.Stopped, in.Finished, in.Found = phaseRunning, m.w.Now, time.Time{}, false, false, false
	in.Health = healthNone
	if b.Check {
		in.Health = healthStarting
	}
}

func (m *model) apply(a action) {
	switch a.Verb {
	case doPull:
		m.w.Images[a.Image] = imageState{Ready: true}
	case doLaunch:
		if m.behave[a.Hash].Break {
			f := m.w.LaunchFailed[a.Key]
			if f.Hash != a.Hash {
				f = launchFailure{Hash: a.Hash}
			}
			f.Count, f.Last, f.Error = f.Count+1, m.w.Now, "broken"
			m.w.LaunchFailed[a.Key] = f
			return
		}
		for _, in := range m.w.Instances {
			if in.Key == a.Key && in.Hash == a.Hash {
				m.t.Fatalf("launched %s a second time", a.Key)
			}
		}
		m.seq++
		m.launches[a.Key]++
		m.w.Instances = append(m.w.Instances, instance{ID: fmt.Sprintf("c%03d", m.seq), Key: a.Key, Hash: a.Hash, Created: m.w.Now.Add(time.Duration(m.seq)), Order: a.Want.Order, Held: a.Hold})
		m.start(&m.w.Instances[len(m.w.Instances)-1])
	case doExpose:
		for i := range m.w.Instances {
			if in := &m.w.Instances[i]; in.Key == a.Key {
				in.Held = in.ID != a.ID
			}
		}
	case doStart:
		m.start(m.find(a.ID))
	case doStop:
		in := m.find(a.ID)
		if in.Phase != phaseRunning {
			m.t.Fatalf("stopped %s, which does not run", a.ID)
		}
		in.Phase, in.Ended, in.Exit, in.Stopped, in.Finished = phaseStopped, m.w.Now, 143, true, false
		if a.Reason == "unhealthy" {
			in.Failures++
		}
	case doRemove:
		in := m.find(a.ID)
		if in.Phase == phaseRunning {
			m.t.Fatalf("removed %s, which runs", a.ID)
		}
		m.w.Instances = slices.DeleteFunc(m.w.Instances, func(i instance) bool { return i.ID == a.ID })
	case doReject:
		m.w.Rejected[a.Key] = rejection{Hash: a.Hash, Reason: a.Reason}
	case doDrop:
		m.dropped[a.Key.App]++
		m.w.Leftover = slices.DeleteFunc(m.w.Leftover, func(s string) bool { return s == a.Key.App })
	}
}

// live lets time pass: processes end or turn healthy as they will.
func (m *model) live(d time.Duration) {
	m.w.Now = m.w.Now.Add(d)
	for i := range m.w.Instances {
		in := &m.w.Instances[i]
		if in.Phase != phaseRunning {
			continue
		}
		b := m.behave[in.Hash]
		age := m.w.Now.Sub(in.Started)
		if b.Check && age > 2*time.Second {
			in.Health = healthGood
			if b.Sick {
				in.Health = healthBad
			}
		}
		if b.Exit >= 0 && age > time.Second {
			in.Phase, in.Ended, in.Exit, in.Finished, in.Health = phaseStopped, m.w.Now, b.Exit, true, healthNone
			in.Failures++
		}
	}
}

// settle runs the loop until it asks for nothing, or for so many rounds.
func (m *model) settle(rounds int, each func(d decision)) bool {
	quiet := 0
	for range rounds {
		d := plan(m.w)
		if again := plan(m.w); !reflect.DeepEqual(d, again) {
			m.t.Fatalf("the same world was decided differently")
		}
		if each != nil {
			each(d)
		}
		for _, a := range d.Actions {
			m.apply(a)
		}
		if len(d.Actions) == 0 && d.Wake.IsZero() {
			if quiet++; quiet > 4 {
				return true
			}
		} else {
			quiet = 0
		}
		m.live(700 * time.Millisecond)
	}
	return false
}

func (m *model) want(version int, startFirst []bool, conditions []string) []wantApp {
	a := wantApp{Name: "app", Digest: fmt.Sprint("v", version)}
	for i, first := range startFirst {
		s := wantService{Service: api.Service{Name: fmt.Sprint("s", i), Restart: api.Restart{Policy: "always"}, Ports: []api.Port{{Host: 8000 + i, Container: 80}}}, Hash: fmt.Sprintf("v%d-s%d", version, i), Image: fmt.Sprint("image", version), StartFirst: first, Order: i}
		if i > 0 && conditions[i] != "" {
			s.DependsOn = []api.Dependency{{Service: fmt.Sprint("s", i-1), Condition: conditions[i]}}
		}
		if _, ok := m.behave[s.Hash]; !ok {
			m.behave[s.Hash] = behaviour{Exit: -1}
		}
		a.Services = append(a.Services, s)
	}
	return []wantApp{a}
}

// drawShape draws an app's shape: how many services, how they may be replaced, who
// waits for whom.
func drawShape(t *rapid.T) (first []bool, conditions []string) {
	n := rapid.IntRange(1, 4).Draw(t, "services")
	for range n {
		first = append(first, rapid.Bool().Draw(t, "startFirst"))
		conditions = append(conditions, rapid.SampledFrom([]string{"", "service_started", "service_healthy"}).Draw(t, "condition"))
	}
	return first, conditions
}

// Whatever happens between, an app whose services are well ends with one running
// container per service, of the wanted hash; and then nothing is done any more.
func TestPlanConvergesFromAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Leftover = []string{"app"}
		for version := range rapid.IntRange(1, 4).Draw(t, "versions") {
			m.w.Apps = m.want(version, first, conditions)
			for i := range first {
				m.behave[fmt.Sprintf("v%d-s%d", version, i)] = behaviour{Exit: -1, Check: rapid.Bool().Draw(t, "check")}
			}
			m.settle(rapid.IntRange(0, 8).Draw(t, "rounds"), nil)
			m.disturb(t)
		}
		// A version that was disturbed may rightly count as failed; the next one must not.
		m.w.Apps = m.want(9, first, conditions)
		if !m.settle(300, m.oneAtATime) {
			t.Fatalf("does not come to rest: %v\n%v", plan(m.w).Actions, m.w.Instances)
		}
		if len(m.w.Instances) != len(first) {
			t.Fatalf("%d containers for %d services: %+v", len(m.w.Instances), len(first), m.w.Instances)
		}
		for i := range first {
			s := m.w.Apps[0].Services[i]
			if !slices.ContainsFunc(m.w.Instances, func(in instance) bool { return in.Hash == s.Hash && in.Phase == phaseRunning && !in.Held }) {
				t.Fatalf("service %s does not run in its wanted version, with its ports", s.Name)
			}
		}
		d := plan(m.w)
		if d.Status[0].State != api.Running || d.Status[0].Bundle != m.w.Apps[0].Digest {
			t.Fatalf("status is %+v", d.Status[0])
		}
		m.w.Apps = nil
		if !m.settle(100, m.dependentsFirst) || len(m.w.Instances) != 0 || m.dropped["app"] != 1 {
			t.Fatalf("the app was not cleared away: %+v, dropped %v", m.w.Instances, m.dropped)
		}
	})
}

// disturb does to the device what may happen to one.
func (m *model) disturb(t *rapid.T) {
	switch rapid.SampledFrom([]string{"nothing", "reboot", "crash", "twin"}).Draw(t, "disturbance") {
	case "reboot":
		for i := range m.w.Instances {
			in := &m.w.Instances[i]
			in.Phase, in.Health, in.Finished, in.Stopped = phaseNone, healthNone, false, false
		}
	case "crash":
		for i := range m.w.Instances {
			if in := &m.w.Instances[i]; in.Phase == phaseRunning {
				in.Phase, in.Ended, in.Exit, in.Finished, in.Failures = phaseStopped, m.w.Now, 137, true, in.Failures+1
			}
		}
	case "twin":
		if len(m.w.Instances) > 0 {
			twin := m.w.Instances[0]
			m.seq++
			twin.ID, twin.Created = fmt.Sprintf("c%03d", m.seq), m.w.Now
			twin.Phase = phaseNone
			m.w.Instances = append(m.w.Instances, twin)
		}
	}
}

// oneAtATime checks each decision: two containers of a service that may not run side
// by side never do, and one step of a service is asked for at a time.
func (m *model) oneAtATime(d decision) {
	seen := map[serviceKey]bool{}
	for _, a := range d.Actions {
		if a.Verb == doPull || a.Verb == doReject {
			continue
		}
		starting := a.Verb == doLaunch || a.Verb == doStart
		if starting && a.Want != nil && !a.Want.StartFirst {
			for _, in := range m.w.Instances {
				if in.Key == a.Key && in.Phase == phaseRunning {
					m.t.Fatalf("%v while %s runs", a, in.ID)
				}
			}
		}
		if starting && seen[a.Key] {
			m.t.Fatalf("two steps of %s at once: %v", a.Key, d.Actions)
		}
		seen[a.Key] = true
	}
}

func (m *model) dependentsFirst(d decision) {
	for _, a := range d.Actions {
		if a.Verb != doStop {
			continue
		}
		for _, in := range m.w.Instances {
			if in.Order > m.find(a.ID).Order && in.Phase == phaseRunning {
				m.t.Fatalf("%v while %s, which may depend on it, runs", a, in.ID)
			}
		}
	}
}

// A container whose hash is wanted and which is well is never touched, whatever else
// of the app changes.
func TestPlanLeavesTheUnchangedAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Apps = m.want(1, first, conditions)
		if !m.settle(200, nil) {
			t.Fatal("does not come to rest")
		}
		same := rapid.IntRange(0, len(first)-1).Draw(t, "unchanged")
		id := ""
		next := m.want(2, first, conditions)
		next[0].Services[same].Hash = m.w.Apps[0].Services[same].Hash
		next[0].Services[same].Restart.Policy = rapid.SampledFrom([]string{"", "no", "always"}).Draw(t, "policy")
		for _, in := range m.w.Instances {
			if in.Hash == next[0].Services[same].Hash {
				id = in.ID
			}
		}
		for i := range first {
			if i != same {
				m.behave[next[0].Services[i].Hash] = behaviour{Exit: rapid.SampledFrom([]int{-1, 0, 1}).Draw(t, "exit"), Check: rapid.Bool().Draw(t, "check"), Sick: rapid.Bool().Draw(t, "sick"), Break: rapid.Bool().Draw(t, "break")}
			}
		}
		m.w.Apps = next
		m.settle(60, func(d decision) {
			for _, a := range d.Actions {
				if a.ID == id || a.Verb == doLaunch && a.Hash == next[0].Services[same].Hash {
					t.Fatalf("the unchanged container was touched: %v", a)
				}
			}
		})
	})
}

// An update that does not become healthy leaves the old instance running in the end,
// by name in the status; the failed one is gone, and it is tried once.
func TestPlanKeepsTheOldWhenTheNewFails(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first := []bool{rapid.Bool().Draw(t, "startFirst")}
		m.w.Apps = m.want(1, first, []string{""})
		m.settle(100, nil)
		m.w.Apps[0].InForce = "v1"
		next := m.want(2, first, []string{""})
		next[0].InForce = "v1"
		switch rapid.SampledFrom([]string{"exits", "sick", "broken"}).Draw(t, "fault") {
		case "exits":
			m.behave["v2-s0"] = behaviour{Exit: rapid.IntRange(0, 3).Draw(t, "exit")}
		case "sick":
			m.behave["v2-s0"] = behaviour{Exit: -1, Check: true, Sick: true}
		case "broken":
			m.behave["v2-s0"] = behaviour{Break: true}
		}
		m.w.Apps = next
		if !m.settle(200, m.oneAtATime) {
			t.Fatalf("does not come to rest: %v %+v", plan(m.w).Actions, m.w.Instances)
		}
		if len(m.w.Instances) != 1 || m.w.Instances[0].Hash != "v1-s0" || m.w.Instances[0].Phase != phaseRunning || m.w.Instances[0].Held {
			t.Fatalf("the old instance does not run alone: %+v", m.w.Instances)
		}
		if m.launches[serviceKey{"app", "s0"}] > 2 {
			t.Fatalf("the update was tried %d times", m.launches[serviceKey{"app", "s0"}]-1)
		}
		st := plan(m.w).Status[0]
		if st.State != api.Running || st.Bundle != "v1" || !strings.Contains(st.Message, "s0: update failed") {
			t.Fatalf("status: %+v", st)
		}
		m.w.Apps = m.want(3, first, []string{""})
		if !m.settle(200, nil) || m.w.Instances[0].Hash != "v3-s0" {
			t.Fatalf("the next update does not pass: %+v", m.w.Instances)
		}
	})
}

// Through good and bad updates a service that may start first has one running container
// with its host ports at every moment, and that is one that was found good.
// A start that was cut short, with the program that was starting it, says nothing of the new
// version: it is started again, and judged by that.
func TestPlanTakesNoCutStartForAFailure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Apps = m.want(0, first, conditions)
		m.settle(100, nil)
		sick := rapid.Bool().Draw(t, "the new version fails")
		m.w.Apps = m.want(1, first, conditions)
		if sick {
			m.behave["v1-s0"] = behaviour{Exit: 1}
		}
		cut := 0
		m.settle(rapid.IntRange(1, 8).Draw(t, "rounds"), nil)
		for i := range m.w.Instances {
			in := &m.w.Instances[i]
			if in.Found = true; strings.HasPrefix(in.Hash, "v1") && in.Phase == phaseRunning {
				cut++
				in.Phase, in.Ended, in.Exit, in.Finished, in.Failures = phaseStopped, m.w.Now, 137, true, in.Failures+1
			}
		}
		before := len(m.w.Rejected)
		d := plan(m.w)
		if slices.ContainsFunc(d.Actions, func(a action) bool { return a.Verb == doReject }) {
			t.Fatalf("%d starts were cut short, and one is a failure: %v", cut, d.Actions)
		}
		if !m.settle(300, nil) || !sick && len(m.w.Rejected) != before {
			t.Fatalf("ends with %v, refused are %v", m.w.Instances, m.w.Rejected)
		}
		if r := m.w.Rejected[serviceKey{"app", "s0"}]; sick && r.Hash != "v1-s0" {
			t.Fatalf("a version that fails again is not refused: %v", m.w.Rejected)
		}
	})
}

func TestPlanKeepsHostPortsServed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		m.w.Apps = m.want(1, []bool{true}, []string{""})
		m.settle(100, nil)
		proven := map[string]bool{"v1-s0": true}
		for version := range rapid.IntRange(1, 4).Draw(t, "versions") {
			hash := fmt.Sprintf("v%d-s0", version+2)
			b := rapid.SampledFrom([]behaviour{{Exit: -1}, {Exit: -1, Check: true}, {Exit: -1, Check: true, Sick: true}, {Exit: 1}, {Break: true}}).Draw(t, "behaviour")
			m.behave[hash], proven[hash] = b, b.Exit < 0 && !b.Sick && !b.Break
			m.w.Apps = m.want(version+2, []bool{true}, []string{""})
			m.settle(rapid.IntRange(0, 40).Draw(t, "rounds"), func(decision) {
				served := 0
				for _, in := range m.w.Instances {
					if in.Held || in.Phase != phaseRunning {
						continue
					}
					if served++; !proven[in.Hash] {
						t.Fatalf("the ports lead to %s, which is not good", in.Hash)
					}
				}
				if served != 1 {
					t.Fatalf("%d containers serve: %+v", served, m.w.Instances)
				}
			})
		}
	})
}

// Busy services are left alone, whatever the world.
func TestPlanLeavesTheBusyAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		first, conditions := drawShape(t)
		m.w.Apps = m.want(1, first, conditions)
		m.settle(rapid.IntRange(0, 10).Draw(t, "rounds"), nil)
		m.w.Apps = m.want(2, first, conditions)
		m.disturb(t)
		for i := range first {
			m.w.Busy[serviceKey{"app", fmt.Sprint("s", i)}] = rapid.Bool().Draw(t, "busy")
		}
		for _, a := range plan(m.w).Actions {
			if a.Verb != doPull && m.w.Busy[a.Key] {
				t.Fatalf("%v, but it is busy", a)
			}
		}
	})
}

func TestRestartsBackOffAndPoliciesHold(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 0, 1: backoffFirst, 2: 2 * backoffFirst, 5: 16 * backoffFirst, 40: backoffMax} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %s, want %s", n, got, want)
		}
	}
	for _, c := range []struct {
		policy   string
		max      int
		exit     int
		restarts int
		want     bool
	}{
		{"no", 0, 1, 0, false}, {"always", 0, 0, 9, true}, {"unless-stopped", 0, 0, 9, true},
		{"on-failure", 0, 0, 0, false}, {"on-failure", 0, 1, 99, true}, {"on-failure", 3, 1, 2, true}, {"on-failure", 3, 1, 3, false}, {"", 0, 0, 0, false}, {"", 0, 137, 5, true},
	} {
		in := &instance{Exit: c.exit, Restarts: c.restarts}
		if got := mayRestart(api.Restart{Policy: c.policy, Max: c.max}, in); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestHealthRules(t *testing.T) {
	r := rulesOf(&api.HealthCheck{StartPeriod: api.Duration(10 * time.Second)})
	if r.interval != 30*time.Second || r.timeout != 30*time.Second || r.retries != 3 {
		t.Fatalf("defaults: %+v", r)
	}
	rapid.Check(t, func(t *rapid.T) {
		j := judgement{Health: healthStarting}
		age, bad := time.Duration(0), 0
		for range rapid.IntRange(1, 30).Draw(t, "checks") {
			ok := rapid.Bool().Draw(t, "ok")
			age += time.Duration(rapid.IntRange(1, 8).Draw(t, "seconds")) * time.Second
			counted := j.Health != healthStarting || age >= r.startPeriod
			j = r.next(j, ok, age)
			switch {
			case ok:
				bad = 0
			case counted:
				bad++
			}
			if (j.Health == healthBad) != (bad >= r.retries) && !(j.Health == healthBad && bad > 0) {
				t.Fatalf("after %d failures in a row: %v", bad, j)
			}
			if ok && j.Health != healthGood {
				t.Fatal("a success does not heal")
			}
		}
	})
}

// An outage is told of at its start and then ever more rarely; the next one at once.
func TestOutageIsToldOfRarely(t *testing.T) {
	var o outage
	now, told, tries := time.Unix(0, 0), 0, 0
	try := func(connected time.Time) (time.Duration, bool) {
		pause, tell := o.failed(now, connected)
		if tries++; tell {
			told++
		}
		return pause, tell
	}
	for now.Before(time.Unix(24*3600, 0)) {
		pause, tell := try(time.Time{})
		if tries == 1 && (!tell || pause > time.Second) {
			t.Fatalf("the first failure: %s, %v", pause, tell)
		}
		if pause <= 0 || pause > outagePauseMax {
			t.Fatalf("a pause of %s", pause)
		}
		now = now.Add(pause)
	}
	if told < 20 || told > 32 {
		t.Errorf("told %d times in a day of %d attempts", told, tries)
	}
	if _, tell := try(now.Add(-time.Second)); tell {
		t.Error("a daemon that was back for a second makes a new outage")
	}
	if pause, tell := try(now.Add(-time.Minute)); !tell || pause != outagePause {
		t.Errorf("the next outage: %s, %v", pause, tell)
	}
}

func TestHealthTestForms(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{nil, nil}, {[]string{"NONE"}, nil}, {[]string{"CMD", "a", "b"}, []string{"a", "b"}},
		{[]string{"CMD-SHELL", "a | b"}, []string{"/bin/sh", "-c", "a | b"}}, {[]string{"a"}, []string{"a"}},
	} {
		if got := healthTest(&api.HealthCheck{Test: c.in}); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c.in, got)
		}
	}
}
