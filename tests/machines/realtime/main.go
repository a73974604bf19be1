//go:build linux

// Command realtime answers: on a kernel with isolated processors, are they left alone, and
// does who claims them get them with memory of their node?
//
// It runs inside a guest of a test, as a program of tests/machines/inside, says
// "realtime: …" of each thing that it sees, and ends with 1 if one is not as it should be.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/cpulist"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/realtime"
	"tributary.dev/tributary/tests/machines/newroot"
)

const (
	pageBytes = 2 << 20
	pages     = 16
)

var failed bool

func check(ok bool, format string, args ...any) {
	word := "well"
	if !ok {
		word, failed = "WRONG", true
	}
	fmt.Printf("realtime: %s: %s\n", word, fmt.Sprintf(format, args...))
}

func must(err error) {
	if err != nil {
		fmt.Println("realtime: WRONG:", err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child()
		return
	}
	runs := 1
	if len(os.Args) > 1 {
		runs, _ = strconv.Atoi(os.Args[1])
	}
	must(newroot.Move("+cpu +memory +pids +cpuset +hugetlb"))
	root := os.DirFS("/")
	found := realtime.Look(root)
	fmt.Printf("realtime: found %d interrupts, isolated %s, pages %v\n", len(found.IRQs), cpulist.Format(found.Isolated), found.Pages)
	keeper, err := realtime.New(realtime.Host(), store{}, realtime.Wish{Isolate: "2-N", RealTime: true, Pages: []realtime.Pages{{SizeKiB: 2048, Node: 1, Count: 40}}}, time.Now, slog.Default())
	must(err)
	must(keeper.Apply())
	now := realtime.Look(root)
	settled(found, now)
	check(len(keeper.Warnings()) == 0, "it warns of %v", keeper.Warnings())
	inventory := hardware.Look(hardware.Host("/"))
	check(inventory.CPU != nil && inventory.CPU.Isolated == "2-3" && inventory.CPU.RealTime, "the inventory says of the processors %+v", *inventory.CPU)
	quiet(now)
	ctx := context.Background()
	b, err := newBox(ctx)
	must(err)
	containers(ctx, b)
	must(latencies(ctx, b, runs))
	givenBack(b)
	must(keeper.Release())
	check(reflect.DeepEqual(masks(found), masks(realtime.Look(root))), "all is given back as it was found")
	if failed {
		os.Exit(1)
	}
}

// settled checks what can be moved.
func settled(found, now *realtime.State) {
	moved, pinned := 0, 0
	for i, irq := range now.IRQs {
		switch {
		case !overlap(irq.May, now.Isolated):
			if i < len(found.IRQs) && overlap(found.IRQs[i].May, now.Isolated) {
				moved++
			}
		default:
			pinned++
			own := !slices.ContainsFunc(irq.May, func(n int) bool { return !slices.Contains(now.Isolated, n) }) // a queue of that processor's
			check(irq.Name == "" || own || !overlap(irq.On, now.Isolated), "interrupt %d (%s), which the kernel pins, is on %s of %s", irq.Number, irq.Name, cpulist.Format(irq.On), cpulist.Format(irq.May))
		}
	}
	check(moved > 0, "%d interrupts were moved, %d are pinned", moved, pinned)
	for path, mask := range now.Masks {
		check(!overlap(mask, now.Isolated), "/%s is %s", path, cpulist.FormatMask(mask))
	}
	check(len(now.Masks) == 2, "%d masks", len(now.Masks))
	on := map[int]int64{}
	for _, p := range now.Pages {
		if p.SizeKiB == 2048 {
			on[p.Node] += p.Count
		}
	}
	check(on[1] == 40, "pages by node: %v", on)
}

// quiet reads a disk and has the isolated processors' counts of devices' interrupts stand.
func quiet(now *realtime.State) {
	before := counts(now.Isolated)
	disk, err := os.Open("/dev/nvme0n1")
	must(err)
	defer disk.Close()
	b := make([]byte, 1<<20)
	for range 200 {
		if _, err := disk.ReadAt(b, 0); err != nil {
			must(err)
		}
		_ = unix.Fadvise(int(disk.Fd()), 0, 0, unix.FADV_DONTNEED) // so that it is read again
	}
	after, busy := counts(now.Isolated), counts([]int{0, 1})
	for name, n := range after {
		check(n == before[name], "%s came %d times on isolated processors while a disk was read", name, n-before[name])
	}
	sum := 0
	for name, n := range busy {
		if strings.Contains(name, "nvme") {
			sum += n
		}
	}
	check(sum > 0, "the disk's interrupts came %d times elsewhere", sum)
}

// counts are the interrupts of devices, by name, on some processors.
func counts(cpus []int) map[string]int {
	text, err := os.ReadFile("/proc/interrupts")
	must(err)
	lines := strings.Split(string(text), "\n")
	columns := len(strings.Fields(lines[0]))
	out := map[string]int{}
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) < columns+2 {
			continue
		}
		if _, err := strconv.Atoi(strings.TrimSuffix(f[0], ":")); err != nil {
			continue // the processors' own
		}
		n := 0
		for _, cpu := range cpus {
			v, _ := strconv.Atoi(f[1+cpu])
			n += v
		}
		out[f[0]+f[len(f)-1]] += n
	}
	return out
}

func hugeMemory(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n*pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
}

func masks(s *realtime.State) map[string]string {
	out := map[string]string{}
	for _, irq := range s.IRQs {
		out[strconv.Itoa(irq.Number)] = cpulist.Format(irq.May)
	}
	for path, m := range s.Masks {
		out[path] = cpulist.FormatMask(m)
	}
	for _, p := range s.Pages {
		out[fmt.Sprint(p.SizeKiB, "@", p.Node)] = strconv.FormatInt(p.Count, 10)
	}
	return out
}

func overlap(a, b []int) bool {
	return slices.ContainsFunc(a, func(n int) bool { return slices.Contains(b, n) })
}

// store keeps nothing past this program.
type store map[string][]byte

func (s store) Load(string, func(key, value []byte) error) error { return nil }
func (s store) Put(string, string, []byte) error                 { return nil }
