package workload

import (
	"context"
	"io"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// healthTest turns Compose's forms into an argument list; nil means no check.
func healthTest(h *api.HealthCheck) []string {
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "NONE":
		return nil
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		return append([]string{"/bin/sh", "-c"}, h.Test[1:]...)
	}
	return h.Test
}

// rules are a health check's numbers with defaults filled in.
type rules struct {
	interval, timeout, startPeriod time.Duration
	retries                        int
}

func rulesOf(h *api.HealthCheck) rules {
	or := func(v api.Duration, def time.Duration) time.Duration {
		if v > 0 {
			return time.Duration(v)
		}
		return def
	}
	r := rules{interval: or(h.Interval, 30*time.Second), timeout: or(h.Timeout, 30*time.Second), startPeriod: time.Duration(h.StartPeriod), retries: h.Retries}
	if r.retries <= 0 {
		r.retries = 3
	}
	return r
}

// judgement is the running result of a container's checks.
type judgement struct {
	Health   health
	Failures int // in a row
}

// next takes one check's outcome. age is how long the process has run. A failure
// within the start period does not count; the first success ends that period.
func (r rules) next(j judgement, ok bool, age time.Duration) judgement {
	switch {
	case ok:
		return judgement{Health: healthGood}
	case j.Health == healthStarting && age < r.startPeriod:
		return j
	}
	j.Failures++
	if j.Failures >= r.retries {
		j.Health = healthBad
	}
	return j
}

// pause is the time to the next check: shorter while the container starts, so that
// what waits for it need not wait for a whole interval.
func (r rules) pause(j judgement, age time.Duration) time.Duration {
	if j.Health == healthStarting && (age < r.startPeriod || j.Failures == 0) {
		return min(r.interval, time.Second)
	}
	return r.interval
}

// prober checks one run of one container.
type prober struct {
	run    int
	check  api.HealthCheck
	cancel context.CancelFunc
}

func (t *tracked) endProbe() {
	if t.probe != nil {
		t.probe.cancel()
		t.probe = nil
	}
}

// superviseAll gives each running container the check that its service asks for
// now. A check changes without a restart of the container; but a container of another
// version than the wanted one keeps the check that it had: the new one may ask for what
// only the new version has. m.mu is held.
func (m *Manager) superviseAll(ctx context.Context) {
	wanted := map[serviceKey]*wantService{}
	for i := range m.want {
		for n := range m.want[i].Services {
			s := &m.want[i].Services[n]
			wanted[serviceKey{m.want[i].Name, s.Name}] = s
		}
	}
	for _, t := range m.instances {
		check := t.svc.Health
		if s := wanted[t.in.Key]; s != nil && s.Hash == t.in.Hash {
			check = s.Health
			t.check = check
		} else if t.check != nil {
			check = t.check
		}
		test := healthTest(check)
		if t.in.Phase != phaseRunning || test == nil || t.in.Stopped {
			t.endProbe()
			if test == nil {
				t.in.Health = healthNone
			}
			continue
		}
		if t.probe != nil && t.probe.run == t.run && sameCheck(t.probe.check, *check) {
			continue
		}
		t.endProbe()
		t.in.Health = healthStarting
		pctx, cancel := context.WithCancel(ctx)
		t.probe = &prober{run: t.run, check: *check, cancel: cancel}
		m.wg.Add(1)
		go func(id string, p *prober, started time.Time) {
			defer m.wg.Done()
			m.probe(pctx, id, p, started)
		}(t.in.ID, t.probe, t.in.Started)
	}
}

func sameCheck(a, b api.HealthCheck) bool {
	return a.Interval == b.Interval && a.Timeout == b.Timeout && a.StartPeriod == b.StartPeriod && a.Retries == b.Retries && slices.Equal(a.Test, b.Test)
}

func (m *Manager) probe(ctx context.Context, id string, p *prober, started time.Time) {
	r, test := rulesOf(&p.check), healthTest(&p.check)
	j := judgement{Health: healthStarting}
	// From here on time passes by the monotonic clock, whoever sets the other.
	began, before := time.Now(), max(0, m.cfg.Now().Sub(started))
	for ctx.Err() == nil {
		ok, err := m.probeOnce(ctx, id, test, r.timeout)
		if ctx.Err() != nil {
			return
		}
		age := before + time.Since(began)
		if !isUnavailable(err) { // a daemon that is down says nothing of the container
			was := j.Health
			j = r.next(j, ok, age)
			m.mu.Lock()
			if t := m.instances[id]; t != nil && t.probe == p {
				t.in.Health = j.Health
			}
			m.mu.Unlock()
			if j.Health != was {
				m.poke()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.pause(j, age)):
		}
	}
}

func (m *Manager) probeOnce(ctx context.Context, id string, argv []string, timeout time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, err := m.exec(ctx, id, ExecRequest{Argv: argv, Stdout: io.Discard, Stderr: io.Discard})
	return err == nil && code == 0, err
}
