package workload

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Log segments are written by edged-log, one ring of files per container:
//
//	<dir>/00000007.log    lines "<Unix µs> <stream><part> <text>\n"
//
// stream is o (stdout) or e (stderr); part is F (a whole line, or the end of one)
// or P (a piece of a line too long to be kept whole). Greater numbers are newer.

// maxLogLine bounds what the reader takes for one line; the writer cuts at 8 KiB.
const maxLogLine = 64 << 10

// Logs writes a service's output, oldest first, each line as
// "<RFC 3339 time> <stdout|stderr> <text>". Without a service it writes that of all
// services of the app, in the order of time, each line after "<service> | ". tail bounds
// the lines from the past (negative: all that is kept). With follow it goes on until ctx
// ends, across restarts and updates of the containers.
func (m *Manager) Logs(ctx context.Context, app, service string, follow bool, tail int, w io.Writer) error {
	if !safeName.MatchString(app) || service != "" && !safeName.MatchString(service) {
		return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%s/%s is not a service", app, service), Remedy: "see `edgectl describe device` for its apps and services"}
	}
	r := &logsReader{root: m.root.logs(app, ""), only: service, out: bufio.NewWriter(w)}
	found, err := r.look()
	if err != nil || !found && !follow {
		return errors.Join(err, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("%s has no logs", strings.TrimSuffix(app+"/"+service, "/")), Remedy: "see `edgectl describe device` for its apps and services"})
	}
	if err := r.past(tail); err != nil || !follow {
		return err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.more(); err != nil {
				return err
			}
		}
	}
}

// logDirs lists the log folders of a service's containers, oldest first.
func logDirs(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	type dated struct {
		path string
		at   time.Time
	}
	var dirs []dated
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		segs := segments(path)
		if len(segs) == 0 {
			continue
		}
		if info, err := os.Stat(filepath.Join(path, segs[len(segs)-1])); err == nil {
			dirs = append(dirs, dated{path, info.ModTime()})
		}
	}
	slices.SortFunc(dirs, func(a, b dated) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.path, b.path)) })
	out := make([]string, len(dirs))
	for i, d := range dirs {
		out[i] = d.path
	}
	return out, nil
}

func segments(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".log") {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out
}

// logsReader follows the services of an app, or one of them.
type logsReader struct {
	root     string // of the app's logs, one folder a service
	only     string // one service; empty for all
	out      *bufio.Writer
	services []*logReader
}

// look finds the services that have a folder by now, and tells whether any wrote.
func (r *logsReader) look() (found bool, err error) {
	names := []string{r.only}
	if r.only == "" {
		entries, err := os.ReadDir(r.root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		names = names[:0]
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		dirs, err := logDirs(filepath.Join(r.root, name))
		if err != nil {
			return false, err
		}
		found = found || len(dirs) > 0
		if slices.ContainsFunc(r.services, func(s *logReader) bool { return s.name == name }) {
			continue
		}
		s := &logReader{name: name, root: filepath.Join(r.root, name), out: r.out, pos: map[string]int64{}}
		if r.only == "" {
			s.label = name + " | "
		}
		r.services = append(r.services, s)
	}
	return found, nil
}

// past writes the last tail lines and remembers where they end.
func (r *logsReader) past(tail int) error {
	type kept struct {
		of   *logReader
		line []byte
	}
	var last []kept
	err := r.each(func(of *logReader, line []byte) error {
		if tail >= 0 {
			last = append(last, kept{of, slices.Clone(line)})
			if len(last) > 2*tail+1024 {
				last = append([]kept(nil), last[len(last)-tail:]...)
			}
			return nil
		}
		return of.write(line)
	})
	if err != nil {
		return err
	}
	for _, k := range last[max(0, len(last)-max(tail, 0)):] {
		if err := k.of.write(k.line); err != nil {
			return err
		}
	}
	return r.out.Flush()
}

func (r *logsReader) more() error {
	if _, err := r.look(); err != nil {
		return err
	}
	if err := r.each((*logReader).write); err != nil {
		return err
	}
	return r.out.Flush()
}

// each hands over every new whole line of all services, the oldest first. A line is
// valid until f returns.
func (r *logsReader) each(f func(of *logReader, line []byte) error) error {
	if len(r.services) == 1 {
		return r.services[0].each(func(line []byte) error { return f(r.services[0], line) })
	}
	type head struct {
		of   *logReader
		line []byte
		at   time.Time
		next func() ([]byte, error, bool)
	}
	var heads []*head
	advance := func(h *head) (more bool, err error) {
		line, err, ok := h.next()
		if !ok || err != nil {
			return false, err
		}
		h.line = line
		h.at, _, _, _, _ = parseLine(line)
		return true, nil
	}
	for _, s := range r.services {
		next, stop := iter.Pull2(s.lines)
		defer stop()
		h := &head{of: s, next: next}
		more, err := advance(h)
		if err != nil {
			return err
		}
		if more {
			heads = append(heads, h)
		}
	}
	for len(heads) > 0 {
		oldest := slices.MinFunc(heads, func(a, b *head) int { return a.at.Compare(b.at) })
		if err := f(oldest.of, oldest.line); err != nil {
			return err
		}
		more, err := advance(oldest)
		if err != nil {
			return err
		}
		if !more {
			heads = slices.DeleteFunc(heads, func(h *head) bool { return h == oldest })
		}
	}
	return nil
}

// logReader follows all rings of a service: position by file.
type logReader struct {
	name, root string
	label      string // what stands before each line
	out        *bufio.Writer
	pos        map[string]int64
	part       [2]bool // the stream's last piece was not the end of its line
}

// lines is each as a sequence. Where it is left off, lines come again.
func (r *logReader) lines(yield func([]byte, error) bool) {
	errStop := errors.New("stop")
	err := r.each(func(line []byte) error {
		if !yield(line, nil) {
			return errStop
		}
		return nil
	})
	if err != nil && err != errStop {
		yield(nil, err)
	}
}

// each hands over every whole line beyond the known positions.
func (r *logReader) each(f func(line []byte) error) error {
	dirs, err := logDirs(r.root)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, dir := range dirs {
		for _, seg := range segments(dir) {
			path := filepath.Join(dir, seg)
			seen[path] = true
			if err := r.file(path, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	for path := range r.pos {
		if !seen[path] {
			delete(r.pos, path)
		}
	}
	return nil
}

func (r *logReader) file(path string, f func(line []byte) error) error {
	at := r.pos[path]
	if info, err := os.Stat(path); err != nil || info.Size() <= at {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(at, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReaderSize(file, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			// Not written by us; pass over it.
			at += int64(len(line))
			continue
		}
		if err != nil { // the end, perhaps in the middle of a line being written
			r.pos[path] = at
			return nil
		}
		at += int64(len(line))
		if err := f(line); err != nil {
			return err
		}
	}
}

// write turns one kept line into one that people read.
func (r *logReader) write(line []byte) error {
	at, stream, whole, text, ok := parseLine(line)
	if !ok {
		return nil
	}
	name := "stdout"
	n := 0
	if stream == 'e' {
		name, n = "stderr", 1
	}
	if !r.part[n] {
		r.out.WriteString(r.label)
		r.out.WriteString(at.UTC().Format("2006-01-02T15:04:05.000000Z"))
		r.out.WriteByte(' ')
		r.out.WriteString(name)
		r.out.WriteByte(' ')
	}
	r.out.Write(text)
	r.part[n] = !whole
	if whole {
		return r.out.WriteByte('\n')
	}
	return nil
}

// parseLine reads "<µs> <stream><part> <text>\n".
func parseLine(line []byte) (at time.Time, stream byte, whole bool, text []byte, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	stamp, rest, found := bytes.Cut(line, []byte(" "))
	if !found || len(rest) < 2 {
		return at, 0, false, nil, false
	}
	us, err := strconv.ParseInt(string(stamp), 10, 64)
	if err != nil || rest[0] != 'o' && rest[0] != 'e' || rest[1] != 'F' && rest[1] != 'P' {
		return at, 0, false, nil, false
	}
	text = rest[2:]
	if len(text) > 0 && text[0] == ' ' {
		text = text[1:]
	}
	return time.UnixMicro(us), rest[0], rest[1] == 'F', text, true
}
