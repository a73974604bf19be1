package agent

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// blob is where totals are kept (state.Blob).
type blob interface {
	Load() ([]byte, error)
	Save([]byte) error
}

// totals sums all usage ever recorded, by app and service, and knows which record was
// the last one in it. Together with the spool it is exact across crashes: what was
// appended after the last save is read from there.
type totals struct {
	blob blob
	mu   sync.Mutex
	kept totalsWire
}

type totalsWire struct {
	Seq uint64 `cbor:"1,keyasint"` // the last record that is summed
	// To is the end of the newest usage interval that is summed, Unix ms.
	To   int64                       `cbor:"2,keyasint"`
	Sums map[string]api.ContainerUse `cbor:"3,keyasint"` // by app/service
}

// add sums one usage record. Intervals that were summed already are left out.
func (t *totalsWire) add(seq uint64, u api.Usage) {
	if seq <= t.Seq {
		return
	}
	t.Seq, t.To = seq, max(t.To, u.To)
	if t.Sums == nil {
		t.Sums = map[string]api.ContainerUse{}
	}
	for _, use := range u.Uses {
		key := use.App + "/" + use.Service
		s := t.Sums[key]
		s.App, s.Service = use.App, use.Service
		s.RunMillis += use.RunMillis
		s.CPUMicros += use.CPUMicros
		s.MemoryByteSeconds += use.MemoryByteSeconds
		s.RxBytes += use.RxBytes
		s.TxBytes += use.TxBytes
		use.Accelerator.AddTo(&s.Accelerator)
		t.Sums[key] = s
	}
}

// loadTotals reads what was saved and adds what the spool holds beyond it.
func loadTotals(b blob, records Records) (*totals, error) {
	t := &totals{blob: b}
	raw, err := b.Load()
	if err != nil {
		return nil, err
	}
	if raw != nil {
		if err := bodyMode.Unmarshal(raw, &t.kept); err != nil {
			t.kept = totalsWire{} // the sums begin anew with what the spool holds
		}
	}
	first, last, _, _ := records.Range()
	for at := max(first, t.kept.Seq+1); at <= last; {
		batch, err := records.Read(at, 256<<10)
		if err != nil {
			return nil, err
		}
		if len(batch) == 0 {
			break
		}
		for _, r := range batch {
			at = max(r.Seq, r.Last) + 1
			if u, ok := readUsage(r.Kind, r.Payload); ok {
				t.kept.add(max(r.Seq, r.Last), u)
			}
		}
	}
	return t, nil
}

// readUsage reads a usage record's payload.
func readUsage(kind api.RecordKind, payload []byte) (u api.Usage, ok bool) {
	if kind != api.RecordUsage {
		return u, false
	}
	u, err := record.DecodeUsage(payload)
	return u, err == nil
}

// appended sums a record that is durable now, and saves.
func (t *totals) appended(seq uint64, u api.Usage) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept.add(seq, u)
	raw, err := encMode.Marshal(t.kept)
	if err != nil {
		return err
	}
	return t.blob.Save(raw)
}

// covers reports whether the interval that ends at to is summed, and so was recorded.
func (t *totals) covers(to int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kept.To >= to
}

func (t *totals) list() []api.ContainerUse {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.kept.Sums), func(a, b api.ContainerUse) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Service, b.Service))
	})
}
