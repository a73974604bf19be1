package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Store is where jobs are written down.
type Store interface {
	Jobs(ctx context.Context) ([]*api.Object, error)
	PutStatus(ctx context.Context, key api.Key, status any) error
}

// Config makes a Loop.
type Config struct {
	Store     Store
	Drivers   map[string]Driver // by the name that a spec says
	Artifacts Artifacts
	// Keep keeps a result as a model in a repository of the job's tenant and returns repository@digest.
	// The same result gives the same digest.
	Keep func(ctx context.Context, o Order, r Result) (string, error)
	// Changed tells that jobs may have changed; closed never. The loop also looks by itself.
	Changed <-chan struct{}
	Now     func() time.Time
	Log     *slog.Logger
}

// Loop keeps jobs as people want them.
type Loop struct {
	cfg  Config
	fail map[string]failure // of what was tried last, by uid
}

type failure struct {
	at    time.Time
	times int
}

// every is how often jobs are looked at while there are any that are not over, and idle when there are none.
const (
	every = 2 * time.Second
	idle  = 30 * time.Second
)

// New makes a loop.
func New(cfg Config) *Loop { return &Loop{cfg: cfg, fail: map[string]failure{}} }

// Run reads TrainingJobs, and writes their status and models, until ctx ends. Jobs go on when it ends.
func (l *Loop) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		busy, err := l.pass(ctx)
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("training jobs cannot be looked after", "err", err)
		}
		wait := idle
		if busy || err != nil {
			wait = every
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-l.cfg.Changed:
		case <-t.C:
		}
		t.Stop()
	}
	return ctx.Err()
}

// pass looks at every job once; busy says that there are some that are not over.
func (l *Loop) pass(ctx context.Context) (busy bool, err error) {
	objects, err := l.cfg.Store.Jobs(ctx)
	if err != nil {
		return false, err
	}
	byDriver := map[string][]*api.Object{}
	for _, o := range objects {
		var s api.TrainingJobSpec
		if err := decode(o.Spec, &s); err != nil {
			return false, fmt.Errorf("%s: %w", o.Key(), err)
		}
		byDriver[s.Filled(o.Metadata.Name).Driver] = append(byDriver[s.Filled(o.Metadata.Name).Driver], o)
	}
	for _, name := range slices.Sorted(maps.Keys(byDriver)) {
		b, e := l.drive(ctx, name, byDriver[name])
		busy, err = busy || b, errors.Join(err, e)
	}
	for name, d := range l.cfg.Drivers {
		err = errors.Join(err, l.sweep(ctx, d, byDriver[name]))
	}
	return busy, err
}

func decode(raw json.RawMessage, into any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// drive does what is to be done about the jobs of one driver.
func (l *Loop) drive(ctx context.Context, name string, objects []*api.Object) (busy bool, err error) {
	d := l.cfg.Drivers[name]
	if d == nil {
		d = absent(name)
	}
	byUID := map[string]*api.Object{}
	var jobs []Job
	for _, o := range objects {
		j, e := l.see(ctx, d, o)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", o.Key(), e))
			continue
		}
		byUID[j.UID] = o
		jobs = append(jobs, j)
		busy = busy || !j.Status.Final() || j.Run.Exists
	}
	seen := map[string]Job{}
	for _, j := range jobs {
		seen[j.UID] = j
	}
	for _, s := range Decide(jobs, d.Capacity(), l.cfg.Now()) {
		j := seen[s.UID]
		after := l.do(ctx, d, byUID[s.UID], j, s)
		if reflect.DeepEqual(after, j.Status) {
			continue
		}
		if e := l.cfg.Store.PutStatus(ctx, byUID[s.UID].Key(), after); e != nil && api.CodeOf(e) != api.NotFound {
			err = errors.Join(err, e)
		}
	}
	return busy, err
}

func (l *Loop) see(ctx context.Context, d Driver, o *api.Object) (j Job, err error) {
	j = Job{UID: o.Metadata.UID}
	if o.Metadata.Created != nil {
		j.Created = *o.Metadata.Created
	}
	if err := errors.Join(decode(o.Spec, &j.Spec), decode(o.Status, &j.Status)); err != nil {
		return j, err
	}
	j.Spec = j.Spec.Filled(o.Metadata.Name)
	j.Run, err = d.Observe(ctx, j.UID)
	return j, err
}

// do does one step and returns the status to be told. What fails is tried again, later each time.
func (l *Loop) do(ctx context.Context, d Driver, o *api.Object, j Job, s Step) api.TrainingJobStatus {
	if f, ok := l.fail[s.UID]; ok && s.Do != Nothing && l.cfg.Now().Sub(f.at) < pause(f.times) {
		st := j.Status
		return st
	}
	st, err := l.try(ctx, d, o, j, s)
	if err == nil {
		delete(l.fail, s.UID)
		return st
	}
	f := l.fail[s.UID]
	l.fail[s.UID] = failure{l.cfg.Now(), f.times + 1}
	l.cfg.Log.Warn("a training job cannot go on", "job", o.Key().String(), "what", string(s.Do), "attempt", f.times+1, "err", err)
	was := j.Status
	if was.Phase == "" {
		was.Phase = api.TrainingQueued
	}
	was.Reason = err.Error()
	if api.CodeOf(err) == api.Invalid || api.CodeOf(err) == api.TooLarge { // it stays so, however often it is tried
		end(&was, api.TrainingFailed, err.Error(), l.cfg.Now())
	}
	return was
}

func (l *Loop) try(ctx context.Context, d Driver, o *api.Object, j Job, s Step) (api.TrainingJobStatus, error) {
	st := s.Status
	switch s.Do {
	case Start:
		if err := d.Refuses(&j.Spec); err != nil {
			return st, err
		}
		order, err := l.pin(ctx, o, j, &st)
		if err != nil {
			return st, err
		}
		return st, d.Start(ctx, order)
	case Suspend:
		return st, d.Suspend(ctx, s.UID)
	case Stop:
		return st, d.Stop(ctx, s.UID)
	case Remove:
		return st, d.Remove(ctx, s.UID, st.Final())
	case Keep:
		return st, l.keep(ctx, d, o, j, &st)
	}
	return st, nil
}

// pin settles once and for all what a job runs in and on.
func (l *Loop) pin(ctx context.Context, o *api.Object, j Job, st *api.TrainingJobStatus) (Order, error) {
	tenant := o.Metadata.Tenant
	for _, p := range []struct {
		at   *string
		ref  string
		what string
	}{{&st.Image, j.Spec.Image, "spec.image"}, {&st.Data, j.Spec.Data, "spec.data"}} {
		if *p.at != "" || p.ref == "" {
			continue
		}
		pinned, _, err := l.cfg.Artifacts.ResolvePinned(ctx, inTenant(tenant, p.ref))
		if err != nil {
			return Order{}, fmt.Errorf("%s: %w", p.what, err)
		}
		*p.at = pinned
	}
	return Order{UID: j.UID, Tenant: tenant, Name: o.Metadata.Name, Spec: j.Spec, Image: st.Image, Data: st.Data}, nil
}

// inTenant reads a reference: of the job's tenant unless it begins with platform/.
func inTenant(tenant, ref string) string {
	if strings.HasPrefix(ref, api.PlatformTenant+"/") {
		return ref
	}
	return tenant + "/" + strings.TrimPrefix(ref, tenant+"/")
}

// keep keeps a result, and says that the job succeeded.
func (l *Loop) keep(ctx context.Context, d Driver, o *api.Object, j Job, st *api.TrainingJobStatus) error {
	r, err := d.Result(ctx, j.UID)
	if err != nil {
		return err
	}
	if st.Metrics, err = metricsOf(r); err != nil {
		return err
	}
	order := Order{UID: j.UID, Tenant: o.Metadata.Tenant, Name: o.Metadata.Name, Spec: j.Spec, Image: st.Image, Data: st.Data}
	if st.Model, err = l.cfg.Keep(ctx, order, r); err != nil {
		return err
	}
	settle(st, time.Duration(st.RanMillis)*time.Millisecond+took(&j.Run, l.cfg.Now()), &j.Run)
	end(st, api.TrainingSucceeded, "", l.cfg.Now())
	return nil // what is left of the run goes in the next pass, when this is written down
}

// metricsOf reads the numbers of metrics.json; whatever else stands there is the model's own.
func metricsOf(r Result) (map[string]float64, error) {
	raw, ok := r["metrics.json"]
	if !ok {
		return nil, nil
	}
	var all map[string]any
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, api.Errorf(api.Invalid, "the trainer's metrics.json is no JSON object: %v", err)
	}
	out := map[string]float64{}
	for k, v := range all {
		if n, ok := v.(float64); ok && len(out) < 100 {
			out[k] = n
		}
	}
	return out, nil
}

// sweep takes away what belongs to no job any more.
func (l *Loop) sweep(ctx context.Context, d Driver, objects []*api.Object) error {
	there, err := d.Jobs(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, o := range objects {
		known[o.Metadata.UID] = true
	}
	for _, uid := range there {
		if !known[uid] {
			err = errors.Join(err, d.Stop(ctx, uid), d.Remove(ctx, uid, true))
		}
	}
	return err
}

// absent is a driver that this core does not have.
type absent string

func (a absent) Refuses(*api.TrainingJobSpec) error {
	return &api.Error{Code: api.Unavailable, Field: "spec.driver", Message: "this core has no driver " + string(a), Remedy: "start cored with " + map[string]string{"local": "--train-containerd", "kubernetes": "--train-kubernetes", "ray": "--train-ray"}[string(a)]}
}
func (absent) Capacity() Capacity                                  { return Capacity{1 << 20, 1 << 60} }
func (absent) Start(context.Context, Order) error                  { return errors.ErrUnsupported }
func (absent) Suspend(context.Context, string) error               { return nil }
func (absent) Stop(context.Context, string) error                  { return nil }
func (absent) Observe(context.Context, string) (Run, error)        { return Run{}, nil }
func (absent) Result(context.Context, string) (Result, error)      { return nil, errors.ErrUnsupported }
func (absent) Remove(context.Context, string, bool) error          { return nil }
func (absent) Logs(context.Context, string, int64) ([]byte, error) { return nil, nil }
func (absent) Jobs(context.Context) ([]string, error)              { return nil, nil }
