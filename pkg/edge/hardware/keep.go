package hardware

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// The pace of Keeper.
const (
	// foldTime is how long what the kernel says is gathered: a card with its functions
	// comes in a burst.
	foldTime = 300 * time.Millisecond
	// lookPause is the least time between two looks, however much is said.
	lookPause = 2 * time.Second
	// lookEvery finds what nobody tells of: a sensor over its limit, wear, a clock rate
	// that was set.
	lookEvery = 30 * time.Second
	// hearAgain is the pause before it is listened anew when that failed.
	hearAgain = 10 * time.Second
)

// Keeper keeps an inventory that is true within seconds. Its methods may be called from any
// goroutine.
type Keeper struct {
	look func() api.Inventory
	hear func(ctx context.Context, poke func()) error
	log  *slog.Logger

	poked   chan struct{}
	changed chan struct{}

	mu  sync.Mutex
	was settler
	now *api.Inventory
}

// NewKeeper keeps the inventory that look gives. hear calls back when something may have
// changed, until its context ends: Hear does.
func NewKeeper(look func() api.Inventory, hear func(ctx context.Context, poke func()) error, log *slog.Logger) *Keeper {
	return &Keeper{look: look, hear: hear, log: log, poked: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
}

// Inventory is the newest; nil before the first look.
func (k *Keeper) Inventory() *api.Inventory {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

// Changed is told of after each change; changes that come while nobody listens are one.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Poke has it look soon.
func (k *Keeper) Poke() {
	select {
	case k.poked <- struct{}{}:
	default:
	}
}

// Run looks until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		k.listen(ctx)
	}()
	defer func() { <-heard }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		k.once(time.Now())
		pause := time.NewTimer(lookPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-k.poked:
			fold := time.NewTimer(foldTime)
			select {
			case <-ctx.Done():
				fold.Stop()
				return ctx.Err()
			case <-fold.C:
			}
			select { // what was said meanwhile is looked at now
			case <-k.poked:
			default:
			}
		}
	}
}

func (k *Keeper) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := k.hear(ctx, k.Poke)
		if ctx.Err() != nil {
			return
		}
		k.log.Warn("the kernel's word on hardware is not heard; it is looked at now and then", "err", err)
		again := time.NewTimer(hearAgain)
		select {
		case <-ctx.Done():
			again.Stop()
		case <-again.C:
			k.Poke()
		}
	}
}

// once looks, and tells when what is told has changed.
func (k *Keeper) once(at time.Time) {
	seen := k.look()
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.was.settle(seen, at)
	same := k.now != nil && reflect.DeepEqual(silent(*k.now), silent(now))
	k.now = &now
	if same {
		return
	}
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// silent is an inventory without what stays on the box.
func silent(i api.Inventory) api.Inventory {
	chips := make([]api.SensorChip, len(i.Sensors))
	for n, c := range i.Sensors {
		chips[n] = api.SensorChip{ID: c.ID, Sensors: make([]api.Sensor, len(c.Sensors))}
		for m, s := range c.Sensors {
			s.Value = nil
			chips[n].Sensors[m] = s
		}
	}
	i.Sensors = chips
	return i
}
