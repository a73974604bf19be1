package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

// The tests run the program itself: it is built on file descriptors.

type process struct {
	dir      string
	out, err *os.File
	cmd      *exec.Cmd
	done     chan error
}

// built are the program's two forms: as a plain `go build` makes it, and as `make build`
// does, without the runtime.
var built = map[string]string{}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "edged-log-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		forms := map[string]string{"plain": "-s -w"}
		if runtime.GOARCH == "amd64" {
			forms["bare"] = "-s -w -E main.bare"
		}
		for form, flags := range forms {
			built[form] = filepath.Join(dir, form)
			cmd := exec.Command("go", "build", "-ldflags="+flags, "-o", built[form], ".")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "%v: %s", err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// forms runs a test of each form of the program.
func forms(t *testing.T, test func(t *testing.T, program string)) {
	for form, program := range built {
		t.Run(form, func(t *testing.T) { test(t, program) })
	}
}

func start(t *testing.T, program, dir string, args ...string) *process {
	t.Helper()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errR, errW, _ := os.Pipe()
	readyR, readyW, _ := os.Pipe()
	p := &process{dir: dir, out: outW, err: errW, done: make(chan error, 1)}
	p.cmd = exec.Command(program, append([]string{"dir", dir}, args...)...)
	p.cmd.ExtraFiles = []*os.File{outR, errR, readyW}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	outR.Close()
	errR.Close()
	readyW.Close()
	if n, _ := readyR.Read(make([]byte, 1)); n != 0 {
		t.Fatal("wrote on the ready pipe instead of closing it")
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

func (p *process) finish(t *testing.T) {
	t.Helper()
	p.out.Close()
	p.err.Close()
	if err := wait.For(t, "edged-log to end with its input", p.done); err != nil {
		t.Errorf("edged-log ended with %v", err)
	}
}

// kept joins all segments, oldest first.
func kept(t *testing.T, dir string) []byte {
	t.Helper()
	segs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	var all []byte
	for _, s := range segs {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

func TestEachStreamAndLineIsKept(t *testing.T) { forms(t, eachStreamAndLineIsKept) }

func eachStreamAndLineIsKept(t *testing.T, program string) {
	dir := t.TempDir()
	p := start(t, program, dir)
	fmt.Fprint(p.out, "one\ntwo\n\npart")
	fmt.Fprint(p.err, "bad\n")
	fmt.Fprint(p.out, "ial\n"+strings.Repeat("y", 2*maxLine+5)+"\nno end")
	p.finish(t)
	var got []string
	last := int64(0)
	for line := range strings.Lines(string(kept(t, dir))) {
		stamp, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		us, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || us < last || time.Since(time.UnixMicro(us)) > time.Hour {
			t.Errorf("stamp %q", stamp)
		}
		last = us
		if strings.HasPrefix(rest, "o") {
			got = append(got, rest)
		} else if rest != "eF bad" {
			t.Errorf("stderr line %q", rest)
		}
	}
	long := strings.Repeat("y", maxLine)
	want := []string{"oF one", "oF two", "oF ", "oF partial", "oP " + long, "oP " + long, "oF yyyyy", "oF no end"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("kept %.300q", got)
	}
}

func TestRingIsBoundedAndGoesOnAfterARestart(t *testing.T) {
	forms(t, ringIsBoundedAndGoesOnAfterARestart)
}

func ringIsBoundedAndGoesOnAfterARestart(t *testing.T, program string) {
	dir := t.TempDir()
	const segment, count = 64 << 10, 3
	n := 0
	for range 3 {
		p := start(t, program, dir, "segment", strconv.Itoa(segment), "count", strconv.Itoa(count))
		for range 5000 {
			fmt.Fprintf(p.out, "line %08d %s\n", n, strings.Repeat("z", 60))
			n++
		}
		p.finish(t)
	}
	segs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	total := int64(0)
	for _, s := range segs {
		info, err := os.Stat(s)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if len(segs) != count || total > segment*count || total < (segment-3*chunk)*(count-1) {
		t.Errorf("%d segments of %d bytes in all", len(segs), total)
	}
	// What is kept is the end, without a hole.
	lines := bytes.Split(bytes.TrimSpace(kept(t, dir)), []byte("\n"))
	for i, line := range lines {
		want := fmt.Sprintf("line %08d", n-len(lines)+i)
		if !bytes.Contains(line, []byte(want)) {
			t.Fatalf("line %d from the end is %q, want %s", len(lines)-i, line, want)
		}
	}
}

func TestTheHintToEndLosesNothing(t *testing.T) { forms(t, theHintToEndLosesNothing) }

func theHintToEndLosesNothing(t *testing.T, program string) {
	dir := t.TempDir()
	p := start(t, program, dir)
	fmt.Fprint(p.out, "before\n")
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	fmt.Fprint(p.out, "after\n")
	p.finish(t)
	if all := kept(t, dir); !bytes.Contains(all, []byte("oF before\n")) || !bytes.Contains(all, []byte("oF after\n")) {
		t.Errorf("kept %q", all)
	}
}

func TestAFullDiskNeverBlocksTheApp(t *testing.T) { forms(t, aFullDiskNeverBlocksTheApp) }

func aFullDiskNeverBlocksTheApp(t *testing.T, program string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs to mount a small tmpfs: " + err.Error())
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, program, dir, "segment", "65536", "count", "8")
	_ = p.out.SetWriteDeadline(time.Now().Add(wait.Limit))
	for i := range 20_000 {
		if _, err := fmt.Fprintf(p.out, "line %08d %s\n", i, strings.Repeat("z", 60)); err != nil {
			t.Fatalf("the app's write %d: %v", i, err)
		}
	}
	_ = os.Remove(filepath.Join(dir, "other"))
	fmt.Fprint(p.out, "the last\n")
	p.finish(t)
	all := kept(t, dir)
	if !bytes.HasSuffix(all, []byte("oF the last\n")) {
		t.Errorf("the end was not kept: %q", all[max(0, len(all)-200):])
	}
	for line := range bytes.Lines(all) {
		if !bytes.HasPrefix(line, []byte("1")) || !bytes.Contains(line, []byte(" oF ")) {
			t.Fatalf("torn line %q", line)
		}
	}
}

func TestMemoryIsSmall(t *testing.T) { forms(t, memoryIsSmall) }

func memoryIsSmall(t *testing.T, program string) {
	limit := 1024
	if program == built["bare"] {
		limit = 256
	}
	dir := t.TempDir()
	p := start(t, program, dir)
	for i := range 30_000 {
		fmt.Fprintf(p.out, "line %08d %s\n", i, strings.Repeat("z", 90))
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		t.Skip("needs /proc/PID/smaps_rollup: " + err.Error())
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			kb := 0
			fmt.Sscan(rest, &kb)
			t.Logf("anonymous memory: %d kB", kb)
			if kb == 0 || kb > limit {
				t.Errorf("anonymous memory is %d kB, at most %d wanted", kb, limit)
			}
		}
	}
	p.finish(t)
}

func TestWrongArgumentsAreRefused(t *testing.T) { forms(t, wrongArgumentsAreRefused) }

func wrongArgumentsAreRefused(t *testing.T, program string) {
	for _, args := range [][]string{{}, {"dir"}, {"dir", "/nonexistent/folder"}, {"dir", "/" + strings.Repeat("x", 5000)}} {
		err := exec.Command(program, args...).Run()
		if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 2 {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	var b [20]byte
	for _, v := range []int64{0, 7, 10, 1795372466121409} {
		if got := string(b[:number(b[:], v)]); got != strconv.FormatInt(v, 10) || parse([]byte(got)) != v {
			t.Errorf("%d: %q, %d", v, got, parse([]byte(got)))
		}
	}
	for _, s := range []string{"", "x", "-1", "99999999999999999999"} {
		if parse([]byte(s)) >= 0 {
			t.Errorf("%q was read as %d", s, parse([]byte(s)))
		}
	}
}

// TestNothingAsksForMemory looks at what the compiler makes of the program: without the
// runtime an allocation is a crash. Only main may be where the runtime calls in.
func TestNothingAsksForMemory(t *testing.T) {
	cmd := exec.Command("go", "build", "-gcflags=-m=1 -S", "-o", os.DevNull, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Contains(out, []byte("main.keep STEXT")) {
		t.Fatalf("this is not what the compiler says of the program: %.300s", out)
	}
	harmless := []string{"runtime.memmove", "runtime.memequal", "runtime.panic", "runtime.morestack", "runtime.duff", "runtime.memclr"}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "escapes to heap") || strings.Contains(line, "moved to heap") {
			t.Error(line)
		}
		_, called, ok := strings.Cut(line, "CALL\truntime.")
		if ok && !slices.ContainsFunc(harmless, func(h string) bool { return strings.HasPrefix("runtime."+called, h) }) {
			t.Error(line)
		}
		if strings.Contains(line, "main.init STEXT") && !strings.Contains(line, " size=1 ") {
			t.Error("a package variable is set at start by code that nobody runs: ", line)
		}
	}
}

func TestSequence(t *testing.T) {
	for name, want := range map[string]int64{
		"00000007.log\x00\x00": 7, "12345678.log\x00": 12345678,
		"00000007.log": -1, "00000007.logs\x00": -1, "0000000x.log\x00": -1, ".\x00": -1, "other\x00": -1, "": -1,
	} {
		if got := sequence([]byte(name)); got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
}
