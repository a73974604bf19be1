// Package cut answers: what can be on a disk after its power went?
//
// A Log holds what was written and flushed, in order. A disk keeps everything up to its last flush; of what came after
// that it keeps any part, in any order, and a write may be torn between sectors. Cut makes one such disk.
package cut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

const sector = 512

// Kind is what an Op does.
type Kind uint8

// The kinds. A Note is kept elsewhere and is durable when it happens, such as a firmware's variable.
const (
	Write Kind = iota
	Flush
	Note
)

// Op is one step of a Log. Offset is in bytes.
type Op struct {
	Kind   Kind
	Offset int64
	Data   []byte
	Name   string // of a note
}

// Log is what happened to a disk, in order.
type Log []Op

// Device is what can be recorded. An *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Recorder is a device that keeps a log of what is done to it. From any goroutine.
type Recorder struct {
	Device
	// Unflushed leaves the flushes out of the log, as a disk that ignores them does.
	Unflushed bool
	mu        sync.Mutex
	log       Log
}

// WriteAt writes and notes it.
func (r *Recorder) WriteAt(p []byte, off int64) (int, error) {
	r.add(Op{Kind: Write, Offset: off, Data: append([]byte(nil), p...)})
	return r.Device.WriteAt(p, off)
}

// Sync flushes and notes it.
func (r *Recorder) Sync() error {
	if !r.Unflushed {
		r.add(Op{Kind: Flush})
	}
	return nil // what is below outlives the test
}

// Note adds something that is durable from now on.
func (r *Recorder) Note(name string, data []byte) {
	r.add(Op{Kind: Note, Name: name, Data: append([]byte(nil), data...)})
}

func (r *Recorder) add(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, op)
}

// Log is what was noted until now.
func (r *Recorder) Log() Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log[:len(r.log):len(r.log)]
}

// Replay makes disks out of a log. Base holds what was there before, and takes what is durable: cuts come in the order
// of their steps.
type Replay struct {
	Base Device
	Log  Log
	done int
	kept map[string][]byte
}

// Image is a disk after a cut. What is written to it stays in it.
type Image struct {
	base  io.ReaderAt
	parts []Op
	// Notes are what was kept elsewhere by then.
	Notes map[string][]byte
}

// Cut gives the disk as it may be when power goes after n steps; r chooses which. n is not less than the last one's.
func (p *Replay) Cut(n int, r *rand.Rand) (*Image, error) {
	durable := p.done
	for i := p.done; i < n; i++ {
		if p.Log[i].Kind == Flush {
			durable = i + 1
		}
	}
	if n < p.done || n > len(p.Log) {
		return nil, fmt.Errorf("a cut after %d of %d steps, when %d are done", n, len(p.Log), p.done)
	}
	if p.kept == nil {
		p.kept = map[string][]byte{}
	}
	for _, op := range p.Log[p.done:durable] {
		switch op.Kind {
		case Write:
			if _, err := p.Base.WriteAt(op.Data, op.Offset); err != nil {
				return nil, err
			}
		case Note:
			p.kept[op.Name] = op.Data
		}
	}
	p.done = durable
	image := &Image{base: p.Base, Notes: map[string][]byte{}}
	for name, data := range p.kept {
		image.Notes[name] = data
	}
	var loose []Op
	for _, op := range p.Log[durable:n] {
		switch op.Kind {
		case Write:
			loose = append(loose, op)
		case Note:
			image.Notes[op.Name] = op.Data
		}
	}
	image.parts = lose(loose, r)
	return image, nil
}

// lose takes a part of the writes that no flush followed, as a disk's cache does: all, none, some, and some torn. Of two
// writes to the same place the later one wins where both were kept: disks do that much.
func lose(loose []Op, r *rand.Rand) (kept []Op) {
	mode := r.IntN(4)
	for _, op := range loose {
		switch {
		case mode == 0:
			kept = append(kept, op)
		case mode == 1 || r.IntN(2) == 0:
		case mode == 3 && r.IntN(4) == 0:
			for at := 0; at < len(op.Data); at += sector {
				if r.IntN(2) == 0 {
					kept = append(kept, Op{Kind: Write, Offset: op.Offset + int64(at), Data: op.Data[at:min(at+sector, len(op.Data))]})
				}
			}
		default:
			kept = append(kept, op)
		}
	}
	return kept
}

// ReadAt reads the disk.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	n, err := i.base.ReadAt(p, off)
	for _, op := range i.parts {
		from, to := max(op.Offset, off), min(op.Offset+int64(len(op.Data)), off+int64(len(p)))
		if from < to {
			copy(p[from-off:to-off], op.Data[from-op.Offset:])
		}
	}
	return n, err
}

// WriteAt writes to this image alone.
func (i *Image) WriteAt(p []byte, off int64) (int, error) {
	i.parts = append(i.parts, Op{Kind: Write, Offset: off, Data: append([]byte(nil), p...)})
	return len(p), nil
}

// Sync does nothing: an image is cut already.
func (i *Image) Sync() error { return nil }

// Extents gives the places at which the image differs from the base, in order of their writing.
func (i *Image) Extents(each func(off int64, data []byte) error) error {
	for _, op := range i.parts {
		if err := each(op.Offset, op.Data); err != nil {
			return err
		}
	}
	return nil
}

// Decode reads the log that the kernel's dm-log-writes and QEMU's blklogwrites write. The ops' data lie in b; ends tells
// where in b each of them ends. A writer that was killed has not counted its last entries: they are read all the same.
// (Documentation/admin-guide/device-mapper/log-writes.rst)
func Decode(b []byte) (log Log, ends []int64, err error) {
	const magic, flagFlush, flagFUA, flagDiscard, flagMark = 0x6a736677736872, 1, 2, 4, 8
	le := binary.LittleEndian
	if len(b) < 4096 || le.Uint64(b) != magic {
		return nil, nil, errors.New("no log of writes")
	}
	entries, size := le.Uint64(b[16:]), int64(le.Uint32(b[24:]))
	if size != 512 && size != 4096 {
		return nil, nil, fmt.Errorf("a log of sectors of %d bytes", size)
	}
	at := size
	add := func(op Op) { log, ends = append(log, op), append(ends, at) }
	for n := uint64(0); ; n++ {
		if at+size > int64(len(b)) {
			if n < entries {
				return nil, nil, fmt.Errorf("the log ends after %d of %d entries", n, entries)
			}
			return log, ends, nil
		}
		e := b[at:]
		where, count, flags, length := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:]), le.Uint64(e[24:])
		if n >= entries && where|count|flags|length == 0 {
			return log, ends, nil
		}
		if where > 1<<40 || count > 1<<40 || length > 1<<20 {
			return nil, nil, fmt.Errorf("entry %d is not one", n)
		}
		at += size
		if flags&flagFlush != 0 { // what was written before is durable, then comes this write
			add(Op{Kind: Flush})
		}
		bytes := int64(count) * sector
		switch {
		case flags&flagMark != 0:
			add(Op{Kind: Note, Name: string(e[32:min(32+int64(length), size)])})
			at += int64(length) / size * size
		case flags&flagDiscard != 0: // content is undefined afterwards; it stays
		case count > 0:
			if bytes > int64(len(b))-at {
				if n >= entries {
					return log, ends, nil
				}
				return nil, nil, fmt.Errorf("the log ends in entry %d", n)
			}
			data := b[at : at+bytes : at+bytes]
			at += (bytes + size - 1) / size * size
			add(Op{Kind: Write, Offset: int64(where) * sector, Data: data})
			if flags&flagFUA != 0 { // durable itself; whoever asks for it asked for a flush before
				add(Op{Kind: Flush})
			}
		}
	}
}
