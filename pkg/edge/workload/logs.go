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
// "<RFC 3339 time> <stdout|stderr> <text>". tail bounds the lines from the past
// (negative: all that is kept). With follow it goes on until ctx ends, across
// restarts and updates of the container.
func (m *Manager) Logs(ctx context.Context, app, service string, follow bool, tail int, w io.Writer) error {
	if !safeName.MatchString(app) || !safeName.MatchString(service) {
		return api.Errorf(api.Invalid, "%s/%s is not a service", app, service)
	}
	r := &logReader{root: m.root.logs(app, service), out: bufio.NewWriter(w)}
	if dirs, err := logDirs(r.root); err != nil || len(dirs) == 0 && !follow {
		return errors.Join(err, &api.Error{Code: api.NotFound, Message: fmt.Sprintf("service %s/%s has no logs", app, service), Remedy: "see `edgectl describe device` for its apps and services"})
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

// logReader follows all rings of a service: position by file.
type logReader struct {
	root string
	out  *bufio.Writer
	pos  map[string]int64
	part [2]bool // the stream's last piece was not the end of its line
}

// past writes the last tail lines and remembers where they end.
func (r *logReader) past(tail int) error {
	r.pos = map[string]int64{}
	var lines [][]byte
	err := r.each(func(line []byte) error {
		if tail >= 0 {
			lines = append(lines, slices.Clone(line))
			if len(lines) > 2*tail+1024 {
				lines = append([][]byte(nil), lines[len(lines)-tail:]...)
			}
			return nil
		}
		return r.write(line)
	})
	if err != nil {
		return err
	}
	for _, line := range lines[max(0, len(lines)-max(tail, 0)):] {
		if err := r.write(line); err != nil {
			return err
		}
	}
	return r.out.Flush()
}

func (r *logReader) more() error {
	if err := r.each(r.write); err != nil {
		return err
	}
	return r.out.Flush()
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
