// Package vitals answers: how does the box do, by its own numbers, and is that as it mostly is?
//
// It reads a few numbers of the kernel at an even pace, gives each series to a detector
// (pkg/anomaly), and tells of what has no precedent in it.
package vitals

import (
	"bytes"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// Host is where the numbers come from.
type Host struct {
	// Root is the root of the file system: proc and sys are below it.
	Root fs.FS
	// Disk tells how many bytes the data folder's file system has and how many are free.
	Disk func() (total, free uint64, err error)
}

// Sample is one number of the box.
type Sample struct {
	Name, Unit string
	Value      float64
	// Floor is the smallest difference that means anything to a person.
	Floor float64
}

// counters are what the kernel has counted since it started.
type counters struct {
	at               time.Time
	busy, all        uint64 // processor time, in ticks
	received, sent   uint64 // bytes, of all network interfaces that are cards
	readIn, writeOut uint64 // sectors of 512 bytes, of all disks
}

// reader makes samples of numbers and counters.
type reader struct {
	host Host
	last counters
}

// read takes the samples of now. What cannot be read has no sample. Rates are missing from the first
// reading, and from one whose counters went back.
func (r *reader) read(now time.Time) (out []Sample) {
	c := counters{at: now}
	c.busy, c.all = processor(r.file("proc/stat"))
	c.received, c.sent = r.network(r.file("proc/net/dev"))
	c.readIn, c.writeOut = r.disks(r.file("proc/diskstats"))
	last := r.last
	r.last = c
	if share, ok := rate(last.busy, c.busy, float64(c.all)-float64(last.all)); ok && last.all > 0 {
		out = append(out, Sample{"cpu.busy", "%", 100 * share, 5})
	}
	if !last.at.IsZero() {
		seconds := now.Sub(last.at).Seconds()
		for _, s := range []struct {
			name        string
			before, now uint64
			scale       float64
			floor       float64
		}{{"net.received", last.received, c.received, 1, 20e3}, {"net.sent", last.sent, c.sent, 1, 20e3},
			{"disk.read", last.readIn, c.readIn, 512, 1e6}, {"disk.written", last.writeOut, c.writeOut, 512, 1e6}} {
			if v, ok := rate(s.before, s.now, seconds); ok {
				out = append(out, Sample{s.name, "B/s", v * s.scale, s.floor})
			}
		}
	}
	if v, ok := memory(r.file("proc/meminfo")); ok {
		out = append(out, Sample{"memory.used", "%", v, 2})
	}
	if v, ok := processes(r.file("proc/loadavg")); ok {
		out = append(out, Sample{"processes", "", v, 20})
	}
	if total, free, err := r.host.Disk(); err == nil && total > 0 {
		out = append(out, Sample{"disk.used", "%", 100 - 100*float64(free)/float64(total), 1})
	}
	if v, ok := r.hottest(); ok {
		out = append(out, Sample{"temperature", "C", v, 3})
	}
	return out
}

func (r *reader) file(name string) []byte {
	b, err := fs.ReadFile(r.host.Root, name)
	if err != nil {
		return nil // a kernel without it: there is no such sample
	}
	return b
}

func rate(before, now uint64, over float64) (float64, bool) {
	if now < before || over <= 0 {
		return 0, false
	}
	return float64(now-before) / over, true
}

// fields gives the words of the line that begins with a word.
func fields(text []byte, first string) []string {
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == first {
			return f[1:]
		}
	}
	return nil
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// processor reads proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal. Guests are in user.
func processor(text []byte) (busy, all uint64) {
	for i, f := range fields(text, "cpu") {
		if i >= 8 {
			break
		}
		n := number(f)
		all += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy, all
}

func memory(text []byte) (used float64, ok bool) {
	total, available := fields(text, "MemTotal:"), fields(text, "MemAvailable:")
	if total == nil || available == nil || number(total[0]) == 0 {
		return 0, false
	}
	return 100 - 100*float64(number(available[0]))/float64(number(total[0])), true
}

// processes is the second number of "running/all" in proc/loadavg.
func processes(text []byte) (float64, bool) {
	f := strings.Fields(string(text))
	if len(f) < 4 {
		return 0, false
	}
	_, all, ok := strings.Cut(f[3], "/")
	return float64(number(all)), ok
}

// network sums up cards: what is not a card carries the same bytes once more.
func (r *reader) network(text []byte) (received, sent uint64) {
	for line := range bytes.Lines(text) {
		name, rest, ok := strings.Cut(string(line), ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(f) < 9 {
			continue
		}
		if _, err := fs.Stat(r.host.Root, "sys/class/net/"+name+"/device"); err != nil {
			continue
		}
		received, sent = received+number(f[0]), sent+number(f[8])
	}
	return received, sent
}

// disks sums up whole disks that are hardware: partitions and what is layered carry the same sectors once more.
func (r *reader) disks(text []byte) (read, written uint64) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 10 {
			continue
		}
		if _, err := fs.Stat(r.host.Root, "sys/block/"+f[2]+"/device"); err != nil {
			continue
		}
		read, written = read+number(f[5]), written+number(f[9])
	}
	return read, written
}

// hottest is the highest temperature of the kernel's thermal zones, in degrees Celsius.
func (r *reader) hottest() (most float64, ok bool) {
	zones, err := fs.Glob(r.host.Root, "sys/class/thermal/thermal_zone*/temp")
	if err != nil {
		return 0, false
	}
	for _, z := range zones {
		text := strings.TrimSpace(string(r.file(z)))
		if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
			most, ok = max(most, float64(n)/1000), true
		}
	}
	return most, ok
}
