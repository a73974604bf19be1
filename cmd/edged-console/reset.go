package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"tributary.dev/tributary/pkg/disk/wipe"
	"tributary.dev/tributary/pkg/edge/boot/blk"
	"tributary.dev/tributary/pkg/edge/boot/cmdline"
	"tributary.dev/tributary/pkg/edge/recovery/owner"
)

// reset destroys what this box keeps, on the disk that process 1 has named.
func reset(run string) func(context.Context, func(string)) error {
	return func(_ context.Context, say func(string)) error {
		line, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return err
		}
		hash, err := cmdline.Parse(string(line)).RootHash()
		if err != nil {
			return fmt.Errorf("this is no appliance: %w", err)
		}
		name, err := os.ReadFile(run + "/disk")
		if err != nil {
			return fmt.Errorf("the disk of this box is not known: %w", err)
		}
		disk, err := blk.Read(strings.TrimSpace(string(name)), hash)
		if err != nil {
			return err
		}
		state, stateSize, err := partition(disk, "state")
		if err != nil {
			return err
		}
		defer state.Close()
		data, dataSize, err := partition(disk, "data")
		if err != nil {
			return err
		}
		defer data.Close()
		if err := wipe.Run(state, data, stateSize, dataSize, say); err != nil {
			return err
		}
		// Whose the box was is told by nothing more. The next owner writes over it in any case.
		if err := owner.Appliance(run, "").Forget(); err != nil {
			say("what is kept of the owner stays: " + err.Error())
		}
		return nil
	}
}

func partition(disk *blk.Disk, label string) (*os.File, int64, error) {
	node, _, err := disk.ByLabel(label)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}
