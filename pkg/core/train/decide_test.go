package train

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

// world plays a driver in virtual time.
type world struct {
	now  time.Time
	has  Capacity
	jobs map[string]*played
}

type played struct {
	Job
	left      time.Duration // of work, by checkpoints of 10 s
	breaks    int           // how often it will break off
	suspended bool          // was asked
	order     int
}

// tick lets time pass for what runs.
func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	for _, p := range w.jobs {
		r := &p.Run
		if !r.Running {
			continue
		}
		over := func(exit int, said string) { r.Running, r.Exit, r.Said, r.Until = false, exit, said, w.now }
		p.left -= d
		switch {
		case p.breaks > 0:
			p.breaks--
			p.left += d
			over(1, "")
		case p.left <= 0:
			over(0, "done")
		case p.suspended:
			over(0, "suspended")
		}
	}
}

func (w *world) list() (out []Job) {
	for _, p := range w.jobs {
		out = append(out, p.Job)
	}
	return out
}

// play does what was decided, and checks what must hold at every step.
func (w *world) play(t *rapid.T) {
	for _, s := range Decide(w.list(), w.has, w.now) {
		p := w.jobs[s.UID]
		if p.Status.Final() && p.Status.Phase != s.Status.Phase {
			t.Fatalf("%s was %s and is %s", s.UID, p.Status.Phase, s.Status.Phase)
		}
		p.Status = s.Status
		switch s.Do {
		case Start:
			if p.Run.Exists {
				t.Fatalf("%s is started beside its own run", s.UID)
			}
			p.Run, p.suspended = Run{Exists: true, Running: true, Since: w.now}, false
		case Suspend:
			p.suspended = true
		case Stop:
			p.Run.Running, p.Run.Exit, p.Run.Until = false, 137, w.now
		case Keep:
			settle(&p.Status, time.Duration(p.Status.RanMillis)*time.Millisecond+took(&p.Run, w.now), &p.Run)
			end(&p.Status, api.TrainingSucceeded, "", w.now)
		case Remove:
			p.Run = Run{}
		}
	}
	var used Capacity
	first := -1 // of those that wait for room
	for _, p := range w.jobs {
		if p.Run.Running {
			n := needs(&p.Spec)
			used.CPUs, used.MemoryBytes = used.CPUs+n.CPUs, used.MemoryBytes+n.MemoryBytes
		}
		if p.Status.Phase == api.TrainingQueued && !p.Run.Exists && (first < 0 || p.order < first) {
			first = p.order
		}
	}
	if used.CPUs > w.has.CPUs || used.MemoryBytes > w.has.MemoryBytes {
		t.Fatalf("%+v are used of %+v", used, w.has)
	}
	for _, p := range w.jobs {
		if first >= 0 && p.order > first && p.Run.Running && p.Run.Since.Equal(w.now) && p.Status.Restarts == 0 {
			t.Fatalf("job %d began before job %d, which waits", p.order, first)
		}
	}
}

// TestDecide plays random jobs until all are over: never more is used than there is, nobody is passed in the queue, what
// is over stays as it is, every job ends, and those that nobody disturbed succeed.
func TestDecide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{now: time.Unix(1_700_000_000, 0).UTC(), has: Capacity{CPUs: 4, MemoryBytes: 8 << 30}, jobs: map[string]*played{}}
		n := rapid.IntRange(1, 8).Draw(t, "jobs")
		calm := map[string]bool{}
		for i := range n {
			spec := api.TrainingJobSpec{Trainer: "x", Ranks: rapid.IntRange(1, 5).Draw(t, "ranks"), TimeLimit: api.Duration(time.Hour)}.Filled("j")
			p := &played{Job: Job{UID: fmt.Sprintf("job-%d", i), Created: w.now.Add(time.Duration(i) * time.Second), Spec: spec}, order: i,
				left: time.Duration(rapid.IntRange(1, 600).Draw(t, "seconds")) * time.Second, breaks: rapid.IntRange(0, 5).Draw(t, "breaks")}
			w.jobs[p.UID] = p
			calm[p.UID] = p.breaks <= spec.MaxRestarts && spec.Ranks <= 4
		}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			p := w.jobs[fmt.Sprintf("job-%d", rapid.IntRange(0, n-1).Draw(t, "who"))]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				p.Spec.Cancel, calm[p.UID] = true, false
			case 1:
				p.Spec.Suspend = true
			case 2:
				p.Spec.Suspend = false
			}
			w.tick(time.Duration(rapid.IntRange(1, 40).Draw(t, "pass")) * time.Second)
			w.play(t)
		}
		for _, p := range w.jobs {
			p.Spec.Suspend = false
		}
		open := func() bool {
			return slices.ContainsFunc(w.list(), func(j Job) bool { return !j.Status.Final() || j.Run.Exists })
		}
		for i := 0; open(); i++ {
			if i > 5000 {
				t.Fatalf("not all jobs end: %+v", w.list())
			}
			w.tick(5 * time.Second)
			w.play(t)
		}
		for uid, p := range w.jobs {
			if calm[uid] && p.Status.Phase != api.TrainingSucceeded {
				t.Fatalf("%s, which nobody disturbed, is %+v", uid, p.Status)
			}
			if p.Status.Restarts > p.Spec.MaxRestarts {
				t.Fatalf("%s was started again %d times; %d are its most", uid, p.Status.Restarts, p.Spec.MaxRestarts)
			}
		}
	})
}

// TestTooLarge: what can never fit fails by name, and does not stand in the way of others.
func TestTooLarge(t *testing.T) {
	spec := func(ranks int) api.TrainingJobSpec {
		return api.TrainingJobSpec{Trainer: "x", Ranks: ranks}.Filled("j")
	}
	at := time.Unix(1_700_000_000, 0)
	got := Decide([]Job{{UID: "a", Created: at, Spec: spec(9)}, {UID: "b", Created: at.Add(1), Spec: spec(2)}}, Capacity{CPUs: 2, MemoryBytes: 8 << 30}, at)
	if got[0].Status.Phase != api.TrainingFailed || got[0].Do != Nothing || got[1].Do != Start {
		t.Errorf("%+v", got)
	}
}

// TestTimeLimit: a job that ran for its limit is ended, pauses left out.
func TestTimeLimit(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	j := Job{UID: "a", Created: at, Spec: api.TrainingJobSpec{Trainer: "x", TimeLimit: api.Duration(time.Minute)}.Filled("j"),
		Status: api.TrainingJobStatus{Phase: api.TrainingRunning, RanMillis: 50_000}, Run: Run{Exists: true, Running: true, Since: at}}
	if got := Decide([]Job{j}, Capacity{CPUs: 1, MemoryBytes: 1 << 30}, at.Add(9*time.Second))[0]; got.Do != Nothing {
		t.Errorf("after 59 s of 60: %+v", got)
	}
	if got := Decide([]Job{j}, Capacity{CPUs: 1, MemoryBytes: 1 << 30}, at.Add(11*time.Second))[0]; got.Do != Stop {
		t.Errorf("after 61 s of 60: %+v", got)
	}
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte(`{"step":0,"steps":10,"resumed":false}` + "\n" + `{"step":10,"steps":10,"loss":0.5}` + "\n" + `{"ended":"done"}`))
	f.Add([]byte(`{"step":-1}{"loss":1e999}` + "\n\x00\n" + `{"step":5,"ste`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := parseProgress(b)
		if p.Step < 0 || p.Step > p.Steps || p.Said != "" && p.Said != "done" && p.Said != "suspended" {
			t.Errorf("%+v", p)
		}
	})
}

// TestProgress: a new start forgets how the run before ended, and a line that was cut is passed over.
func TestProgress(t *testing.T) {
	p := parseProgress([]byte(`{"step":0,"steps":10,"resumed":false}
{"step":4,"steps":10,"loss":0.5}
{"ended":"suspended"}
{"step":4,"steps":10,"resumed":true}
{"step":6,"steps":10,"lo`))
	if p.Said != "" || p.Step != 4 || p.First != 4 || p.Starts != 2 || p.Loss == nil || *p.Loss != 0.5 {
		t.Errorf("%+v", p)
	}
}
