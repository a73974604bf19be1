package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/tests/wait"
)

func config(dir string) Config {
	return Config{Path: filepath.Join(dir, "state.db"), Log: slog.New(slog.DiscardHandler)}
}

func open(t interface{ Fatal(...any) }, dir string) *Store {
	s, err := Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dump(t interface{ Fatal(...any) }, s *Store) map[string]string {
	all := map[string]string{}
	for _, bucket := range []string{"a", "b", "bundle"} {
		if err := s.Load(bucket, func(k, v []byte) error { all[bucket+"/"+string(k)] = string(v); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestStoreIsAMap compares the store with a map through commits of both kinds and
// reopenings.
func TestStoreIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "state")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		s := open(t, dir)
		defer func() { s.Close() }()
		model := map[string]string{}
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) {
				var ops []link.Op
				for range rapid.IntRange(1, 4).Draw(t, "n") {
					bucket := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "bucket")
					key := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "key")
					o := link.Op{Bucket: bucket, Key: []byte(key)}
					if rapid.Bool().Draw(t, "set") {
						o.Value = rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "value")
						if o.Value == nil {
							o.Value = []byte{}
						}
						model[bucket+"/"+key] = string(o.Value)
					} else {
						delete(model, bucket+"/"+key)
					}
					ops = append(ops, o)
				}
				if err := s.Commit(ops, rapid.Bool().Draw(t, "sync")); err != nil {
					t.Fatal(err)
				}
			},
			"empty": func(t *rapid.T) {
				if err := s.Commit([]link.Op{{Bucket: "a"}}, rapid.Bool().Draw(t, "sync")); err != nil {
					t.Fatal(err)
				}
				maps.DeleteFunc(model, func(k, _ string) bool { return k[0] == 'a' })
			},
			"reopen": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if s = open(t, dir); s.Origin() != Intact {
					t.Fatalf("reopened as %s", s.Origin())
				}
			},
			"copy": func(t *rapid.T) {
				if err := s.Copy(); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				v, err := s.Get("a", "x")
				want, ok := model["a/x"]
				if err != nil || (v != nil) != ok || string(v) != want {
					t.Fatalf("get: %q, %v; want %q", v, err, want)
				}
				if got := dump(t, s); !maps.Equal(got, model) {
					t.Fatalf("got %q\nwant %q", got, model)
				}
			},
		})
	})
}

// TestDamageIsFoundAndMended flips or cuts the file at random; the store must open,
// and hold what it held, or what the copy held, or nothing: never a mixture.
func TestDamageIsFoundAndMended(t *testing.T) {
	master := t.TempDir()
	s := open(t, master)
	for i := range 60 {
		if err := s.PutBundle(fmt.Sprint("sha256:", i), bytes.Repeat([]byte{byte(i)}, i*60)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Copy(); err != nil {
		t.Fatal(err)
	}
	atCopy := dump(t, s)
	for i := range 20 {
		if err := s.Put("a", fmt.Sprint(i), []byte("after the copy")); err != nil {
			t.Fatal(err)
		}
	}
	atEnd := dump(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(master, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	goodCopy, err := os.ReadFile(filepath.Join(master, "state.db.copy"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[Origin]int{}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "state")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		write(t, dir, "state.db", damage(t, whole))
		backup := goodCopy
		if rapid.IntRange(0, 4).Draw(t, "copy too") == 0 {
			backup = damage(t, goodCopy)
		}
		write(t, dir, "state.db.copy", backup)
		s := open(t, dir)
		defer s.Close()
		found[s.Origin()]++
		got := dump(t, s)
		warned := len(s.Warnings()) == 1 && s.Warnings()[0].Name == "state-rebuilt"
		switch s.Origin() {
		case Intact:
			// The last commits may be gone when the newer meta page was torn: bbolt then
			// goes back by one commit, which was a whole state too.
			if !maps.Equal(got, atEnd) && !oneCommitLess(got, atEnd) || warned {
				t.Fatalf("taken for intact with %d of %d pairs, warned %v", len(got), len(atEnd), warned)
			}
		case FromCopy:
			if !maps.Equal(got, atCopy) || !warned {
				t.Fatalf("rebuilt with %d of %d pairs, warned %v", len(got), len(atCopy), warned)
			}
		case FromEmpty:
			if len(got) != 0 || !warned {
				t.Fatalf("rebuilt from nothing with %d pairs, warned %v", len(got), warned)
			}
		default:
			t.Fatalf("opened as %s", s.Origin())
		}
		if err := s.Put("a", "new", []byte("x")); err != nil {
			t.Fatal(err)
		}
	})
	if found[FromCopy] == 0 || found[Intact] == 0 {
		t.Errorf("the damage was one-sided: %v", found)
	}
}

func oneCommitLess(got, want map[string]string) bool {
	if len(got) != len(want)-1 {
		return false
	}
	for k, v := range got {
		if want[k] != v {
			return false
		}
	}
	return true
}

func damage(t *rapid.T, whole []byte) []byte {
	b := bytes.Clone(whole)
	switch rapid.IntRange(0, 3).Draw(t, "how") {
	case 0:
		return b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut at")]
	case 1: // a page of zeros, as after a lost write
		at := rapid.IntRange(0, len(b)/4096-1).Draw(t, "page") * 4096
		clear(b[at:min(at+4096, len(b))])
	default:
		for range rapid.IntRange(1, 3).Draw(t, "flips") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		}
	}
	return b
}

func write(t *rapid.T, dir, name string, b []byte) {
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFirstOpeningLeavesNoTemporaries(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "state.db.new"), []byte("power was cut here"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if s.Origin() != Fresh || len(s.Warnings()) != 0 {
		t.Errorf("opened as %s with %v", s.Origin(), s.Warnings())
	}
	if _, err := os.Stat(filepath.Join(dir, "state.db.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary stays: %v", err)
	}
	if _, err := Open(config(dir)); err == nil {
		t.Error("two processes hold one file")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A start after which nothing has changed does not wait for the disk to have written it.
func TestOpeningWritesNothing(t *testing.T) {
	dir := t.TempDir()
	var before []byte
	for i := range 3 {
		s := open(t, dir)
		if err := s.db.Close(); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(s.cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && !bytes.Equal(before, after) {
			t.Errorf("opening number %d wrote", i)
		}
		before = after
	}
}

func TestWarningOfARebuildLastsADay(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	if err := os.WriteFile(filepath.Join(dir, "state.db"), make([]byte, 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir).Close()
	now := time.Now()
	cfg := config(dir)
	cfg.Now = func() time.Time { return now }
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if w := s.Warnings(); len(w) != 1 || w[0].Name != "state-rebuilt" {
		t.Errorf("after a restart: %v", w)
	}
	now = now.Add(25 * time.Hour)
	if w := s.Warnings(); len(w) != 0 {
		t.Errorf("a day later: %v", w)
	}
}

func TestRunCopiesAfterChanges(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if err := s.Put("a", "x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	s.CopySoon()
	wait.Until(t, "there is a copy", func() bool { return CheckFile(filepath.Join(dir, "state.db.copy")) == nil })
	t.Cleanup(func() { // after t.Context() ended
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	})
}

func TestDiskFullIsNamedAndRecovers(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("needs root, to mount a small file system: %v", err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	s := open(t, dir)
	defer s.Close()
	filler := filepath.Join(dir, "filler")
	fill, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	fill.Close()
	value := bytes.Repeat([]byte("x"), 3000)
	onReserve := 0
	for i := range 1000 {
		if err = s.Put("a", fmt.Sprint(i), value); err != nil {
			break
		}
		onReserve++
	}
	if !errors.Is(err, syscall.ENOSPC) || onReserve < 20 {
		t.Fatalf("%d commits on a full disk, then %v", onReserve, err)
	}
	if w := s.Warnings(); len(w) == 0 || w[0].Name != "disk-full" {
		t.Errorf("warnings %v", w)
	}
	if err := s.Commit([]link.Op{{Bucket: "b", Key: []byte("late"), Value: []byte("v")}}, false); err != nil {
		t.Errorf("a late commit failed on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("a", "again", value); err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 0 {
		t.Errorf("with room again: %v", w)
	}
	s.reserve()
	if _, err := os.Stat(filepath.Join(dir, "state.db.reserve")); err != nil {
		t.Errorf("the reserve was not taken back: %v", err)
	}
	if v, err := s.Get("b", "late"); string(v) != "v" || err != nil {
		t.Errorf("late commit: %q, %v", v, err)
	}
	if got := dump(t, s); len(got) != onReserve+2 {
		t.Errorf("%d pairs, want %d", len(got), onReserve+2)
	}
}

func TestForeignBucketsPass(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	err := s.DB().Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("spool"))
		if err != nil {
			return err
		}
		n, err := b.CreateBucket([]byte("nested"))
		if err != nil {
			return err
		}
		for i := range 500 {
			if err := n.Put([]byte(fmt.Sprintf("%05d", i)), bytes.Repeat([]byte("v"), 100+i*20)); err != nil {
				return err
			}
		}
		return b.Put([]byte("cursor"), []byte("no checksum here"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s = open(t, dir); s.Origin() != Intact {
		t.Errorf("opened as %s", s.Origin())
	}
	s.Close()
}

func FuzzCheck(f *testing.F) {
	dir := f.TempDir()
	s := open(f, dir)
	for i := range 40 {
		if err := s.Put("a", fmt.Sprint(i), bytes.Repeat([]byte("v"), i*10)); err != nil {
			f.Fatal(err)
		}
	}
	s.Close()
	whole, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Add(make([]byte, 8192))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := Check(bytes.NewReader(b), int64(len(b))); err == nil {
			// What passes must be safe to open and read through bbolt.
			path := filepath.Join(t.TempDir(), "f.db")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := openBolt(path)
			if err != nil {
				return
			}
			defer db.Close()
			_ = db.View(func(tx *bbolt.Tx) error {
				return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
					return b.ForEach(func(_, _ []byte) error { return nil })
				})
			})
		}
	})
}
