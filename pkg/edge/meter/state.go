package meter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
)

// maxState bounds the blob; 4 MiB hold tens of thousands of baselines.
const maxState = 4 << 20

// state is everything that must outlive edged.
type state struct {
	Version uint                   `cbor:"1,keyasint"`
	Last    int64                  `cbor:"2,keyasint"` // end of the last cut interval, Unix ms
	Base    map[string]baseline    `cbor:"3,keyasint"`
	Acc     map[string]accumulated `cbor:"4,keyasint"`
	Pending *api.Usage             `cbor:"5,keyasint,omitempty"`
	// Cards is what of each service's use of accelerators has been counted already.
	Cards map[string]api.AcceleratorUse `cbor:"6,keyasint,omitempty"`
}

// baseline is what of a target has been counted already.
type baseline struct {
	CPU    uint64 `cbor:"1,keyasint"`
	Rx     uint64 `cbor:"2,keyasint"`
	Tx     uint64 `cbor:"3,keyasint"`
	Memory uint64 `cbor:"4,keyasint"` // bytes at the last sample
	Up     int64  `cbor:"5,keyasint"` // uptime at the last sample, ms
	Boot   string `cbor:"6,keyasint"`
	Ended  bool   `cbor:"7,keyasint,omitempty"`
}

type accumulated struct {
	Use              api.ContainerUse `cbor:"1,keyasint"`
	MemoryByteMillis uint64           `cbor:"2,keyasint"`
}

// instant is one moment by two clocks, in ms.
type instant struct {
	wall int64
	up   int64
	boot string
}

// jump is how far the wall clock must move by itself, in ms, to be taken for set.
const jump = 1000

// steady moves a target's times behind a jump of the wall clock since the targets were
// read last: what began or ended since then did so since then.
func (seen instant) steady(t Target, now instant) Target {
	if seen == (instant{}) || (now.wall-seen.wall)-(now.up-seen.up) < jump {
		return t
	}
	edge := time.UnixMilli(now.wall - (now.up - seen.up))
	if t.Started.Before(edge) {
		t.Started = edge
	}
	if !t.Ended.IsZero() && t.Ended.Before(edge) {
		t.Ended = edge
	}
	return t
}

// advance counts what a target used since its baseline. Counters never go back: a
// reading below the baseline (a cgroup already removed) adds nothing.
func (s *state) advance(t Target, r Reading, now instant) {
	base, known := s.Base[t.ID]
	if base.Ended {
		return
	}
	until := now.up
	if !t.Ended.IsZero() {
		until = min(now.up, now.up-(now.wall-t.Ended.UnixMilli()))
	}
	since := base.Up
	if !known {
		since = min(now.up, max(0, now.up-(now.wall-t.Started.UnixMilli())))
	}
	if known && base.Boot != now.boot {
		// A process does not outlive a boot: what it used after the last sample of
		// its life is lost, and must not be guessed.
		since = until
	}
	span := uint64(max(0, until-since))

	key := t.App + "\x00" + t.Service
	a := s.Acc[key]
	a.Use.App, a.Use.Service = t.App, t.Service
	a.Use.RunMillis += span
	a.Use.CPUMicros += r.CPUMicros - min(r.CPUMicros, base.CPU)
	a.Use.RxBytes += r.RxBytes - min(r.RxBytes, base.Rx)
	a.Use.TxBytes += r.TxBytes - min(r.TxBytes, base.Tx)
	a.MemoryByteMillis += meanMemory(known, !t.Ended.IsZero(), base.Memory, r.MemoryBytes) * span
	s.Acc[key] = a

	s.Base[t.ID] = baseline{
		CPU: max(base.CPU, r.CPUMicros), Rx: max(base.Rx, r.RxBytes), Tx: max(base.Tx, r.TxBytes),
		Memory: r.MemoryBytes, Up: max(since, until), Boot: now.boot, Ended: !t.Ended.IsZero(),
	}
}

// addCards counts what services used of accelerators since the last time. A counter that
// went back began anew.
func (s *state) addCards(now map[string]api.AcceleratorUse) {
	if len(now) == 0 && len(s.Cards) == 0 {
		return
	}
	next := make(map[string]api.AcceleratorUse, len(now))
	for who, use := range now {
		app, service, ok := strings.Cut(who, "/")
		if !ok {
			continue
		}
		next[who] = use
		before := s.Cards[who]
		grown, was := use, before.Fields()
		for i, n := range grown.Fields() {
			if *n >= *was[i] {
				*n -= *was[i]
			}
		}
		if grown == (api.AcceleratorUse{}) {
			continue
		}
		key := app + "\x00" + service
		a := s.Acc[key]
		a.Use.App, a.Use.Service, a.Use.Accelerator = app, service, grown
		s.Acc[key] = a
	}
	s.Cards = next
}

// meanMemory is the height of one step of the integral: the trapezoid between two
// samples; at the ends, the one sample there is (an ended cgroup holds nothing).
func meanMemory(known, ended bool, before, now uint64) uint64 {
	switch {
	case !known:
		return now
	case ended:
		return before
	}
	return before/2 + now/2
}

func (s *state) encode() ([]byte, error) {
	s.Version = 1
	b, err := cbor.Marshal(s)
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("meter: state of %d bytes is past the bound of %d", len(b), maxState)
	}
	return b, err
}

var decoding = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxNestedLevels: 8, MaxMapPairs: 1 << 16, MaxArrayElements: 1 << 16}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

func decodeState(b []byte) (state, error) {
	s := state{}
	if len(b) > maxState {
		return s, errors.New("meter: kept state is past its bound")
	}
	if len(b) > 0 {
		if err := decoding.Unmarshal(b, &s); err != nil {
			return state{}, fmt.Errorf("meter: kept state cannot be read: %w", err)
		}
		if s.Version != 1 {
			return state{}, fmt.Errorf("meter: kept state has version %d, this program knows 1", s.Version)
		}
	}
	if s.Base == nil {
		s.Base = map[string]baseline{}
	}
	if s.Acc == nil {
		s.Acc = map[string]accumulated{}
	}
	return s, nil
}

func withDefaults(cfg Config) Config {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Uptime == nil {
		cfg.Uptime = uptime
	}
	if cfg.BootID == "" {
		b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		cfg.BootID = strings.TrimSpace(string(b))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
