package vitals

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"tributary.dev/tributary/pkg/anomaly"
	"tributary.dev/tributary/pkg/api"
)

// DefaultEvery is how often samples are taken.
const DefaultEvery = 10 * time.Second

// Config is what a Keeper is made of; all of it is needed.
type Config struct {
	Host  Host
	Now   func() time.Time
	Event func(api.Event)
}

// Keeper watches the box's numbers.
type Keeper struct {
	cfg   Config
	every atomic.Int64
	again chan struct{}
}

// New makes a keeper; Run does the work.
func New(cfg Config) *Keeper {
	k := &Keeper{cfg: cfg, again: make(chan struct{}, 1)}
	k.every.Store(int64(DefaultEvery))
	return k
}

// SetEvery changes how often samples are taken; zero is the default. What was learned at another pace
// is forgotten: the same box looks different at it.
func (k *Keeper) SetEvery(d time.Duration) {
	if d <= 0 {
		d = DefaultEvery
	}
	if k.every.Swap(int64(d)) == int64(d) {
		return
	}
	select {
	case k.again <- struct{}{}:
	default:
	}
}

// Run reads the kernel's numbers and writes events of what is odd, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		w := watcher{every: time.Duration(k.every.Load()), reader: reader{host: k.cfg.Host}, series: map[string]*anomaly.Detector{}}
		tick := time.NewTicker(w.every)
		for again := false; !again; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return nil
			case <-k.again:
				again = true
			case <-tick.C:
				for _, e := range w.look(k.cfg.Now()) {
					k.cfg.Event(e)
				}
			}
		}
		tick.Stop()
	}
}

// watcher has the detectors of one pace.
type watcher struct {
	every  time.Duration
	reader reader
	series map[string]*anomaly.Detector
}

func (w *watcher) look(now time.Time) (found []api.Event) {
	for _, s := range w.reader.read(now) {
		d := w.series[s.Name]
		if d == nil {
			c := anomaly.Firm()
			c.Floor = s.Floor
			d = anomaly.New(c)
			w.series[s.Name] = d
		}
		if r := d.Add(now, s.Value); r.Found() {
			found = append(found, api.Event{Time: now.UnixMilli(), Name: api.EventAnomaly, Subject: s.Name, Message: explain(s, r, w.every)})
		}
	}
	return found
}

// explain says in a sentence what was found.
func explain(s Sample, r anomaly.Reading, every time.Duration) string {
	unit := s.Unit
	if unit != "" {
		unit = " " + unit
	}
	is := short(s.Value) + unit
	switch r.Voice {
	case anomaly.Step:
		return fmt.Sprintf("%s is %s: it changed by %s%s within %s, where %s%s is what it changes by at its third largest", s.Name, is, short(r.Is), unit, every, short(r.Usual), unit)
	case anomaly.Hour:
		return fmt.Sprintf("%s is %s: %s%s off what this time of the day mostly has, where %s%s is the third largest so far", s.Name, is, short(r.Is), unit, short(r.Usual), unit)
	}
	return fmt.Sprintf("%s is %s: the last %s look like nothing before (%s from the nearest; %s is usual)", s.Name, is, 16*every, short(r.Is), short(r.Usual))
}

// short writes three digits.
func short(v float64) string {
	for _, s := range []struct {
		over float64
		unit string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= s.over || v <= -s.over {
			return strconv.FormatFloat(v/s.over, 'g', 3, 64) + s.unit
		}
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
