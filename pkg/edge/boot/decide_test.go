package boot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A must that fails ends the climb; anything else that fails, or panics, does not.
func TestClimb(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var steps []step
		taken, wantTaken := 0, 0
		var wantErr bool
		for range rapid.IntRange(0, 8).Draw(t, "steps") {
			kind := rapid.SampledFrom([]string{"fine", "fails", "panics"}).Draw(t, "kind")
			m := Must(rapid.Bool().Draw(t, "must"))
			steps = append(steps, step{"s", m, func(context.Context) error {
				taken++
				switch kind {
				case "fails":
					return errors.New("no")
				case "panics":
					panic("no")
				}
				return nil
			}})
			if !wantErr {
				wantTaken++
				wantErr = bool(m) && kind != "fine"
			}
		}
		reported := 0
		clock := time.Duration(0)
		err := climb(t.Context(), steps, func() time.Duration { clock += time.Millisecond; return clock }, func(r StepReport) {
			reported++
			if r.Took <= 0 {
				t.Fatal("no time has passed")
			}
		})
		if (err != nil) != wantErr || taken != wantTaken || reported != taken {
			t.Fatalf("%v after %d of %d steps, %d reported", err, taken, wantTaken, reported)
		}
	})
}

// A child that dies at once is started ever more slowly, at most every half minute; one
// that lived is started at once.
func TestBackoff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		quick := rapid.IntRange(0, 1000).Draw(t, "quick")
		lived := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "lived"))
		pause, next := backoff(quick, lived)
		if pause < firstPause || pause > longPause || lived >= steady && (pause != firstPause || next != 1) {
			t.Fatalf("after %d quick ends and %v: %v", quick, lived, pause)
		}
		if again, _ := backoff(next, 0); lived < steady && again < pause {
			t.Fatalf("%v, then %v", pause, again)
		}
	})
}

func TestClockFloor(t *testing.T) {
	built, day := time.Unix(1.7e9, 0), 24*time.Hour
	for _, c := range []struct{ now, built, saved, want time.Time }{
		{built.Add(day), built, time.Time{}, time.Time{}},
		{time.Unix(0, 0), built, time.Time{}, built},
		{built, built, built.Add(day), built.Add(day)},
		{built.Add(2 * day), built, built.Add(day), time.Time{}},
		{built, built, built.Add(50 * 365 * day), time.Time{}}, // a damaged file
		{time.Unix(0, 0), time.Time{}, time.Time{}, time.Time{}},
	} {
		if got := clockFloor(c.now, c.built, c.saved); !got.Equal(c.want) {
			t.Errorf("%v, built %v, saved %v: %v", c.now, c.built, c.saved, got)
		}
	}
}

// Of a real table: the disks' mounts and nothing else, what lies deeper and came later
// first.
func TestDiskMounts(t *testing.T) {
	table := `22 1 254:0 / / ro,nodev - erofs /dev/dm-0 ro
23 22 0:21 / /proc rw - proc proc rw
30 22 254:1 / /state rw - ext4 /dev/mapper/state rw
31 22 254:2 / /data rw - ext4 /dev/mapper/data rw
40 24 0:40 / /run rw - tmpfs tmpfs rw
41 40 0:50 / /run/containerd/io.containerd/task/a\040b/rootfs rw - overlay overlay rw
42 31 254:2 /x /data/edged/x rw - ext4 /dev/mapper/data rw
43 22 0:60 / /database rw - tmpfs tmpfs rw
`
	got := diskMounts([]byte(table))
	want := []string{"/run/containerd/io.containerd/task/a b/rootfs", "/data/edged/x", "/data", "/state"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestRequest(t *testing.T) {
	for line, ok := range map[string]bool{`{"do":"status"}`: true, `{"do":"reboot","reason":"x"}`: true, `{"do":"poweroff"}`: true, `{"do":"dance"}`: false, `{}`: false, `x`: false} {
		if _, err := parseRequest([]byte(line)); (err == nil) != ok {
			t.Errorf("%s: %v", line, err)
		}
	}
	b := &booter{leave: make(chan request, 1)}
	if a := b.answer(t.Context(), strings.NewReader(`{"do":"reboot","reason":"r"}`+"\n")); a.Error != "" {
		t.Error(a.Error)
	}
	if r := <-b.leave; r.Do != doReboot || r.Reason != "r" {
		t.Errorf("%+v", r)
	}
	if a := b.answer(t.Context(), strings.NewReader(strings.Repeat("x", 10000))); a.Error == "" {
		t.Error("a line without end is taken")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"do":"reboot","reason":"x"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if q, err := parseRequest(line); err == nil && q.Do == "" {
			t.Fatal("a wish for nothing")
		}
	})
}

// The key that has no TPM comes back as it went.
func TestFileSealer(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	sealed, err := fileSealer{}.Seal(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (fileSealer{}).Unseal(t.Context(), sealed); err != nil || string(got) != string(key) {
		t.Errorf("%q, %v", got, err)
	}
}
