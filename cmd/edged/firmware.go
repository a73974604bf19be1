package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/firmware"
	"tributary.dev/tributary/pkg/edge/update"
	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/tpm/attest"
	"tributary.dev/tributary/pkg/tpm/eventlog"
)

// firmwareKeys makes what keeps the firmware's keys in step with the releases. flash is its own.
func (b *box) firmwareKeys(flash *update.Flash, running update.Slot) *firmware.Keeper {
	return firmware.New(firmware.Config{
		Variables: efi.FS(efi.Dir),
		Carried: func() ([]efi.Append, error) {
			text, err := os.ReadFile("/" + efi.AppendsFile)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil // an image from before there was such a file
			}
			if err != nil {
				return nil, err
			}
			return efi.DecodeAppends(text)
		},
		Signed: func() (booted, other [][]byte, err error) {
			if booted, err = flash.Signed(running); err != nil {
				return nil, nil, err
			}
			if other, err = flash.Signed(running.Other()); err != nil {
				b.log.Info("the other slot holds nothing that starts", "err", err)
			}
			return booted, other, nil
		},
		Log: func() ([]eventlog.Event, error) {
			text, err := os.ReadFile(eventlog.File)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil // no TPM
			}
			if err != nil {
				return nil, err
			}
			return eventlog.Parse(text)
		},
		Sealed: func(ctx context.Context) (int, error) {
			f, err := boot.Foretell(ctx, nil)
			if errors.Is(err, boot.ErrNoTPM) || err != nil && !hasTPM() {
				return 0, nil
			}
			if err != nil {
				return 0, err
			}
			return len(f.PCR7), nil
		},
		Foretell: func(ctx context.Context, pcr7 [][]byte) error {
			f, err := boot.Foretell(ctx, pcr7)
			if errors.Is(err, boot.ErrNoTPM) || err != nil && !hasTPM() {
				return nil
			}
			if err != nil || f.Word == nil {
				return err
			}
			return keepWord(wordsFile, bootName(), attest.Word{PCR7: pcr7, Evidence: f.Word.Evidence})
		},
		Say: b.log,
	})
}

// trialFirmware has the state sealed for a release before the firmware is told to try it.
type trialFirmware struct {
	update.Firmware
	keys *firmware.Keeper
}

// SetNext implements update.Firmware.
func (t trialFirmware) SetNext(s update.Slot) error {
	if err := t.keys.BeforeTrial(context.Background()); err != nil {
		return err
	}
	return t.Firmware.SetNext(s)
}

// The pauses of settleFirmware.
const (
	settleEvery = 10 * time.Second
	settleMost  = 10 * time.Minute
)

// settleFirmware brings the keys that the release carries into the firmware, once in a start, when no update is under way:
// what runs is confirmed then.
func (b *box) settleFirmware(ctx context.Context) error {
	pause := settleEvery
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if b.updater.State().Phase != update.Idle {
			pause = settleEvery
			continue
		}
		err := b.keysOfFirmware.Settle(ctx)
		if err == nil {
			<-ctx.Done()
			return nil
		}
		b.log.Warn("the firmware's keys stay as they are for now", "err", err, "again", pause)
		pause = min(2*pause, settleMost)
	}
}
