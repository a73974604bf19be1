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
	if k.Now == nil {
		k.Now = time.Now
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
	cfg.Settings, cfg.Online = t.Settings, k.Online
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil { // it was asked to end, so how it did is no fault
			k.Say("network: %v", err)
		}
	}
	saved := trial.Trial{}
	tick := time.NewTicker(k.Every)
	defer tick.Stop()
	for last := k.Now(); ; {
		if due(saved, t) {
			k.keep(t)
			saved = t
		}
		if !reflect.DeepEqual(t.Settings, cfg.Settings) {
			k.Say("network: new settings are in force (%s)", t.Phase)
			stop()
			return t, nil
		}
		select {
		case <-ctx.Done():
			stop()
			return t, nil
		case err := <-ended:
			if ctx.Err() != nil { // as above, and sooner
				err = nil
			}
			cancel()
			return t, err
		case <-tick.C:
		}
		now := k.Now()
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
	if err := t.Show(k.Run, k.Now()); err != nil {
		k.Say("%v", err)
	}
}

// hear takes up what a person wants.
func (k Keeping) hear(t trial.Trial) trial.Trial {
	// Taken first, then read: a wish that follows at once is a file of its own.
	path := filepath.Join(k.Run, WishFile+".taken")
	err := os.Rename(filepath.Join(k.Run, WishFile), path)
	if errors.Is(err, os.ErrNotExist) {
		return t
	}
	if err != nil {
		k.Say("%v", err)
		return t
	}
	var text []byte
	info, err := os.Stat(path)
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
	_ = os.Remove(path) // the next one takes its place
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
