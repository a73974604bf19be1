package machines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/disk/wipe"
	"tributary.dev/tributary/pkg/edge/boot/luks"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/vm"
)

// TestResetAndSale: a person at the console resets a box that was sold, and its power goes when the keys are
// destroyed and the rest is not. What was kept of STATE opens nothing, the next start goes on with the reset,
// and the box is its new owner's, whom another core serves, by another key.
func TestResetAndSale(t *testing.T) {
	needImage(t, "amd64")
	buyer := secondCore(t)
	a := arrive(t, images(), BoxSpec{Name: "box", Parent: "core", Role: "field", Bootstrap: []string{fmt.Sprintf("https://10.0.2.2:%d", buyer.boxes["box"].wire.bootstrap.port)}})
	box := a.tree.boxes["box"]
	a.start()
	before := a.member("box")
	m := a.tree.Machine("box")
	old := stateOf(t, box.Disk())
	if err := old.open(old); err != nil {
		t.Fatalf("the box runs, and the key in STATE's header does not open it: %v", err)
	}

	// Sold: the manufacturer vouches for the new owner, and the old one lets the box go.
	dir := t.TempDir()
	a.edgectl("voucher", "issue", "DEMO-BOX", "--key", filepath.Join(a.tree.Keys, "manufacturer.key"), "--owner", filepath.Join(buyer.CoreDir(), "ca", "root.crt"), "--out", dir)
	if _, err := buyer.Edgectl(a.ctx, "", "device", "expect", "DEMO-BOX", "--voucher", filepath.Join(dir, "DEMO-BOX.vcj"), "--name", "bought", "--labels", "role=field"); err != nil {
		t.Fatal(err)
	}
	a.edgectl("device", "retire", "box")

	say := func(line, pattern string) []string {
		t.Helper()
		if err := m.Send(line); err != nil {
			t.Fatal(err)
		}
		found, err := m.Expect(a.ctx, pattern)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	say("\r", `drawn screen: `)
	say("power\r", `3  Factory reset[\s\S]*Enter to go back: `)
	words := say("3\r", `Type "(erase [^"]+)" to go on: `)[1]
	slow(t, a.ctx, m, 2<<20) // of some 32 MB
	say(words+"\r", `the keys are destroyed`)
	if err := box.PowerCut(); err != nil {
		t.Fatal(err)
	}

	cut := stateOf(t, box.Disk())
	if pending, err := wipe.Pending(cut); err != nil || !pending {
		t.Fatalf("the disk does not say that a reset goes on (%v)", err)
	}
	if err := cut.open(old); !errors.Is(err, luks.ErrKey) {
		t.Errorf("the old headers, put back, and the old key: %v", err)
	}

	a.began = time.Now()
	if err := box.Start(a.ctx); err != nil {
		t.Fatal(err)
	}
	m = a.tree.Machine("box")
	expect(t, a.ctx, m, `a factory reset goes on`)
	expect(t, a.ctx, m, `factory reset: the state is empty`)
	expect(t, a.ctx, m, up)
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
	var st api.DeviceStatus
	if err := lab.Until(a.ctx, "the new owner has it", patience, func(ctx context.Context) error { return memberOf(ctx, buyer, "bought", &st) }); err != nil {
		t.Fatal(err)
	}
	t.Logf("its new owner's, %.0f s after power on", time.Since(a.began).Seconds())
	if st.ID == before.ID {
		t.Error("a reset box has its old key")
	}
	now := stateOf(t, box.Disk())
	if err := now.open(now); err != nil {
		t.Errorf("the new STATE: %v", err)
	}
	if err := now.open(old); !errors.Is(err, luks.ErrKey) {
		t.Errorf("the old headers, put onto the new STATE, and the old key: %v", err)
	}
	var was api.DeviceStatus
	if err := memberOf(a.ctx, a.tree, "box", &was); err == nil {
		t.Error("the old owner still has it online")
	}
}

// secondCore is another owner's, on the same host.
func secondCore(t *testing.T) *Tree {
	t.Helper()
	keys, err := filepath.Abs(keyDir)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := New(Spec{Bin: programs(t), Images: images(), Dir: t.TempDir(), Keys: keys, Boxes: []BoxSpec{{Name: "box", Parent: "core", Role: "field"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(tree.Dir, "cored.log")); err == nil && t.Failed() {
			t.Logf("the second cored:\n%s", text)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := tree.StartCore(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tree
}

// slow bounds what a machine writes to its first disk, in bytes a second.
func slow(t *testing.T, ctx context.Context, m *vm.Machine, rate int) {
	t.Helper()
	var blocks []struct {
		QDev     string `json:"qdev"`
		Inserted struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	if err := m.Do(ctx, "query-block", nil, &blocks); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if b.Inserted.Node == "disk0" {
			if err := m.Do(ctx, "block_set_io_throttle", map[string]any{"id": b.QDev, "bps": 0, "bps_rd": 0, "bps_wr": rate, "iops": 0, "iops_rd": 0, "iops_wr": 0}, nil); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no disk among %+v", blocks)
}

// state is the beginning of a box's partition STATE as it was on the disk: headers and key slots.
type state struct {
	bytes   []byte
	size    int64
	headers *luks.Header // nil if there are none
	key     []byte       // that stands in the open, as it does on a box without a TPM
}

// stateHead is where the data of a LUKS2 volume begin, behind headers and key slots.
const stateHead = 16 << 20

func (s *state) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(p)) > int64(len(s.bytes)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, s.bytes[at:]), nil
}

// open tries the key slots that are there now, by headers and key of another time.
func (s *state) open(by *state) error {
	if by.headers == nil {
		return errors.New("there are no headers")
	}
	_, err := by.headers.Open(s, "", s.size, by.key)
	return err
}

func stateOf(t *testing.T, disk string) *state {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := gpt.Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	_, p := table.Find("state")
	s := &state{bytes: make([]byte, stateHead), size: table.Size(p)}
	if _, err := f.ReadAt(s.bytes, table.Offset(p)); err != nil {
		t.Fatal(err)
	}
	if s.headers, err = luks.Read(s); err != nil {
		s.headers = nil
		return s
	}
	for _, text := range s.headers.Tokens() {
		var token struct {
			Type   string
			Sealed json.RawMessage
		}
		if json.Unmarshal(text, &token) == nil && token.Type == "tributary-file" {
			if err := json.Unmarshal(token.Sealed, &s.key); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}
