// Package wipe answers: how does a box forget all that it keeps, its keys first, so that a
// power cut at any moment only delays it?
//
// A LUKS2 volume has its key in the key slots behind its two headers. The first write puts
// a mark into the first key slot: with it the anti-forensic split of the key there (LUKS2
// on-disk format, 2.4) can't be put together again, and whoever finds the mark goes on.
// The mark goes last.
package wipe

import (
	"bytes"
	"errors"
	"io"
)

// Device is a partition.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when what was written is on the medium.
	Sync() error
}

const (
	// slots is where LUKS2's key slots begin, behind two headers of 16 KiB.
	slots = 32 << 10
	// end is where its data begin.
	end   = 16 << 20
	block = 4096
)

var mark = []byte("tributary: this box is being reset; its keys are gone\n")

// Pending tells whether a reset of the box has begun and is not through. state is its
// partition STATE.
func Pending(state io.ReaderAt) (bool, error) {
	b := make([]byte, len(mark))
	if _, err := state.ReadAt(b, slots); err != nil {
		return false, err
	}
	return bytes.Equal(b, mark), nil
}

// Run resets a box: it destroys the keys of STATE, all that leads to DATA, and then the
// headers of STATE, so that both are empty to whoever looks next. stateSize and dataSize
// are in bytes. It may be repeated, and is to be repeated after a cut until it returns nil.
// done hears of each stage.
func Run(state, data Device, stateSize, dataSize int64, done func(stage string)) error {
	if stateSize < slots+block {
		return errors.New("the partition STATE is too small to hold what it should")
	}
	if _, err := state.WriteAt(append(bytes.Clone(mark), make([]byte, block-len(mark))...), slots); err != nil {
		return err
	}
	if err := state.Sync(); err != nil {
		return err
	}
	for _, stage := range []struct {
		name     string
		on       Device
		from, to int64
	}{
		{"the keys are destroyed", state, slots + block, min(end, stateSize)},
		{"the data can't be read any more", data, 0, min(end, dataSize)},
		{"", state, slots / 2, slots}, // the second header, or cryptsetup would mend the first by it
		{"", state, block, slots / 2},
		{"the state is empty", state, 0, block},
		{"", state, slots, slots + block}, // the mark
	} {
		if err := zero(stage.on, stage.from, stage.to); err != nil {
			return err
		}
		if stage.name != "" {
			done(stage.name)
		}
	}
	return nil
}

func zero(d Device, from, to int64) error {
	const most = 1 << 20
	nothing := make([]byte, most)
	for at := from; at < to; at += most {
		if _, err := d.WriteAt(nothing[:min(most, to-at)], at); err != nil {
			return err
		}
	}
	return d.Sync()
}
