package scenario

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// What edged-log keeps of a container by default: five segments of 1 MiB, and a write
// of up to 40 KiB more in each.
const logBound = 5<<20 + 5*(40<<10)

// logFlood runs a service that writes 32 MB at once and then 1 MB each second. It must
// never be held up, also while edged is dead, and its log must stay bounded.
func logFlood(ctx context.Context, t *testing.T, s *story.Story) {
	// The numbers in /tmp tell how far it came. A round that took more than 0.9 s to
	// write its megabyte counts as held up.
	work(ctx, t, s, "flood", `
services:
  writer:
    image: cache
    tmpfs: [/tmp]
    stop_grace_period: 1s
    entrypoint:
      - /bin/busybox
      - sh
      - -c
      - |
        line="$$(printf '%0120d' 0)"
        yes "burst $$line" | head -c 33554432
        n=0
        while :; do
          n=$$((n+1))
          yes "round $$n $$line" | head -c 1000000
          echo
          echo $$n > /tmp/new
          mv /tmp/new /tmp/rounds
          sleep 1
        done
`)
	box := s.Lab.Boxes["field-2"]
	must(t, running(ctx, s, "field-2", "flood"))
	pid, err := box.Task(ctx, "flood", "writer")
	must(t, err)
	rounds := func() (int, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/rounds", pid))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(b)))
	}
	must(t, lab.Until(ctx, "the burst is over", s.Wait, func(context.Context) error {
		_, err := rounds()
		return err
	}))
	dir := filepath.Join(box.Data(), "apps", "apps", "flood", "logs")
	// At rest a round takes 1 s and what it takes to make 1 MB; the machine is shared.
	advance := func(when string, by int) {
		t.Helper()
		from, err := rounds()
		must(t, err)
		began := time.Now()
		must(t, lab.Until(ctx, when+": the writer goes on", time.Duration(by)*4*time.Second, func(context.Context) error {
			if size, err := sizeOf(dir); err != nil || size > logBound {
				t.Fatalf("%s: the log takes %d bytes, over %d: %v", when, size, logBound, err)
			}
			n, err := rounds()
			if err == nil && n < from+by {
				err = fmt.Errorf("it came from round %d to %d", from, n)
			}
			return err
		}))
		t.Logf("%s: %d MB in %s", when, by, time.Since(began).Round(time.Millisecond))
	}
	advance("edged runs", 3)
	box.KillEdged()
	advance("edged is dead", 4)
	must(t, box.StartEdged(ctx))
	must(t, online(ctx, s, "field-2"))
	advance("edged is back", 2)
	must(t, same(ctx, box, "flood", "writer", pid))

	at, err := rounds()
	must(t, err)
	out, err := s.Lab.Edgectl(ctx, "", "logs", "field-2", "flood/writer", "--tail", "20000")
	must(t, err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 20000 {
		t.Errorf("%d lines came, not 20000", len(lines))
	}
	newest, bad := 0, 0
	for _, l := range lines { // "<time> stdout round 12 000…"
		f := strings.Fields(l)
		if len(f) == 2 || len(f) == 5 && len(f[4]) < 120 { // the end of a round
			continue
		}
		if len(f) != 5 || f[1] != "stdout" || f[2] != "round" {
			bad++
			continue
		}
		n, err := strconv.Atoi(f[3])
		must(t, err)
		if n < newest {
			t.Fatalf("round %d comes after round %d", n, newest)
		}
		newest = n
	}
	if newest < at || bad > 0 {
		t.Errorf("the newest round in the log is %d, the writer was at %d; %d lines are not the writer's", newest, at, bad)
	}
}

// sizeOf sums the files below a folder; what goes while it counts is not there.
func sizeOf(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				sum += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}
