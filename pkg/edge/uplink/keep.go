package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
)

// WishFile is where the recovery console puts the settings that a person wants, below
// Config.Run. Keep takes it away.
const WishFile = "network-wish.json"

// Keeping says how Keep tries settings.
type Keeping struct {
	// Config is how the uplinks are to be; its Settings are those of CONFIG.
	Config
	// File is where the trial outlives a reboot.
	File string
	// Online tells whether the parent is reached.
	Online func(context.Context) bool
	// Every is the time between two looks. Default 2 s.
	Every time.Duration
}

// Keep keeps the uplinks like Run, and tries settings like slots (package trial): new ones
// that go without the parent for five minutes are taken back.
func Keep(ctx context.Context, k Keeping) error {
	if k.Every <= 0 {
		k.Every = 2 * time.Second
	}
	t, err := trial.Load(k.File, k.Settings)
	if err != nil {
		k.Say("network settings: %v; beginning with CONFIG's", err)
	}
	for ctx.Err() == nil {
		if t, err = k.live(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// live runs one set of settings until another is to be in force.
func (k Keeping) live(ctx context.Context, t trial.Trial) (trial.Trial, error) {
	ctx, cancel := context.WithCancel(ctx)
	cfg := k.Config
	cfg.Settings = t.Settings
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	stop := func() error {
		cancel()
		return <-ended
	}
	saved := trial.Trial{}
	tick := time.NewTicker(k.Every)
	defer tick.Stop()
	for last := time.Now(); ; {
		if due(saved, t) {
			k.keep(t)
			saved = t
		}
		if !reflect.DeepEqual(t.Settings, cfg.Settings) {
			k.Say("network: new settings are in force (%s)", t.Phase)
			return t, stop()
		}
		select {
		case <-ctx.Done():
			return t, stop()
		case err := <-ended:
			cancel()
			return t, err
		case <-tick.C:
		}
		now := time.Now()
		t = k.hear(t)
		if t.Phase == trial.OnTrial || t.Phase == trial.Unproven {
			t = t.Tick(now.Sub(last), k.Online(ctx))
		}
		last = now
	}
}

// due tells whether the trial has gone on so far that the disk should know: a power cut
// costs it half a minute at most.
func due(saved, t trial.Trial) bool {
	if t.Silent/(30*time.Second) != saved.Silent/(30*time.Second) {
		return true
	}
	saved.Silent, saved.Well = t.Silent, t.Well
	return !reflect.DeepEqual(saved, t)
}

func (k Keeping) keep(t trial.Trial) {
	if err := t.Save(k.File); err != nil {
		k.Say("network settings are not kept: %v", err)
	}
	if err := t.Show(k.Run, time.Now()); err != nil {
		k.Say("%v", err)
	}
}

// hear takes up what a person wants.
func (k Keeping) hear(t trial.Trial) trial.Trial {
	path := filepath.Join(k.Run, WishFile)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return t
	}
	var text []byte
	if err == nil && info.Size() > 64<<10 {
		err = fmt.Errorf("%s has %d bytes", path, info.Size())
	}
	if err == nil {
		text, err = os.ReadFile(path)
	}
	var w struct {
		Settings *api.NetworkSettings `json:"settings"`
		Revert   bool                 `json:"revert"`
		By       string               `json:"by"`
	}
	if err == nil {
		err = json.Unmarshal(text, &w)
	}
	if err == nil && w.Settings != nil {
		err = w.Settings.Validate("")
	}
	if removed := os.Remove(path); removed != nil {
		k.Say("%v", removed)
		return t // or it would be heard for ever
	}
	switch {
	case err != nil:
		k.Say("network settings that were wanted are not taken: %v", err)
	case w.Revert:
		return t.Revert(w.By + " took them back")
	case w.Settings != nil:
		return t.Offer(w.Settings, w.By)
	}
	return t
}
