package workload

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// Without a service the lines of all come in the order of time, each with its
// service's name, and a service that begins later joins.
func TestLogsOfAllServices(t *testing.T) {
	m := &Manager{root: folders{root: t.TempDir()}}
	write := func(service string, from, n, step int) {
		t.Helper()
		dir := filepath.Join(m.root.logs("a", service), "c1")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d oF line %d\n", 1_700_000_000_000_000+from+i*step, from+i*step)
		}
		f, err := os.OpenFile(filepath.Join(dir, "00000000.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = f.WriteString(b.String())
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("even", 0, 500, 2)
	write("odd", 1, 500, 2)
	for tail, want := range map[int]int{-1: 1000, 7: 7, 0: 0} {
		var out strings.Builder
		if err := m.Logs(context.Background(), "a", "", false, tail, &out); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if want == 0 && out.Len() == 0 {
			continue
		}
		if len(lines) != want {
			t.Fatalf("tail %d: %d lines", tail, len(lines))
		}
		for i, line := range lines {
			n := 1000 - want + i
			if name := []string{"even", "odd"}[n%2]; !strings.HasPrefix(line, name+" | ") || !strings.HasSuffix(line, fmt.Sprintf("stdout line %d", n)) {
				t.Fatalf("tail %d: line %d is %q", tail, i, line)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait.Limit)
	defer cancel()
	pr, pw := io.Pipe()
	go func() { _ = m.Logs(ctx, "a", "", true, 0, pw); pw.Close() }()
	time.AfterFunc(50*time.Millisecond, func() { write("third", 2000, 1, 1) })
	b := make([]byte, 256)
	n, err := pr.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), "third | ") {
		t.Errorf("%q, %v", b[:n], err)
	}
	cancel()
	_, _ = io.Copy(io.Discard, pr)
}
