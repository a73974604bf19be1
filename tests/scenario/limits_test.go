package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/story"
)

// resourceLimits runs a service that eats memory beside one that looks at its cage.
func resourceLimits(ctx context.Context, t *testing.T, s *story.Story) {
	work(ctx, t, s, "cage", `
services:
  hog:
    image: cache
    entrypoint: [/bin/busybox, tail, /dev/zero]
    restart: always
    deploy: {resources: {limits: {memory: 24M}}}
  quiet:
    image: cache
    entrypoint: [/bin/busybox, sleep, "100000"]
    stop_grace_period: 1s
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [NET_RAW, CHOWN]
    deploy: {resources: {limits: {cpus: "0.25", memory: 32M, pids: 20}}}
`)
	box := s.Lab.Boxes["field-2"]
	st, err := appOn(ctx, s, "field-2", "cage", "backs off from its hog", func(a api.AppStatus) bool {
		hog, quiet := service(a, "hog"), service(a, "quiet")
		return hog.Restarts >= 4 && hog.State == api.Backoff && quiet.State == api.Running
	})
	must(t, err)
	if hog := service(st, "hog"); hog.ExitCode == nil || *hog.ExitCode != 137 || !strings.Contains(hog.Message, "exited with 137") {
		t.Errorf("killed for its memory, it is %+v", hog)
	}
	must(t, backsOff(ctx, s))

	pid, err := box.Task(ctx, "cage", "quiet")
	must(t, err)
	status, err := procStatus(pid)
	must(t, err)
	for field, want := range map[string]string{"Seccomp": "2", "NoNewPrivs": "1"} {
		if status[field] != want {
			t.Errorf("%s is %q, not %q", field, status[field], want)
		}
	}
	caps, err := strconv.ParseUint(status["CapBnd"], 16, 64)
	must(t, err)
	for name, bit := range map[string]int{"CHOWN": 0, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_MODULE": 16, "SYS_PTRACE": 19, "SYS_ADMIN": 21} {
		if caps&(1<<bit) != 0 {
			t.Errorf("it has CAP_%s (CapBnd %x)", name, caps)
		}
	}
	if caps&(1<<10) == 0 {
		t.Errorf("NET_BIND_SERVICE is gone, which is a default (CapBnd %x)", caps)
	}
	must(t, limitsShow(pid))

	run := func(argv ...string) (string, error) {
		out, err := s.Lab.Edgectl(ctx, "", append([]string{"exec", "field-2", "cage/quiet", "--"}, argv...)...)
		if err != nil {
			return out, err
		}
		return out, nil
	}
	if _, err := run("touch", "/srv/x"); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
		t.Errorf("writing to a read-only root: %v", err)
	}
	if _, err := run("touch", "/tmp/x"); err != nil {
		t.Errorf("writing to its tmpfs: %v", err)
	}
	if _, err := run("sh", "-c", "for i in $(seq 40); do sleep 30 >/dev/null 2>&1 & done"); err == nil || !strings.Contains(err.Error(), "fork") {
		t.Errorf("forty processes under a limit of twenty: %v", err)
	}
}

func service(a api.AppStatus, name string) api.ServiceStatus {
	for _, s := range a.Services {
		if s.Name == name {
			return s
		}
	}
	return api.ServiceStatus{}
}

// backsOff holds the starts of the hog against the rule that each pause is longer.
func backsOff(ctx context.Context, s *story.Story) error {
	list, err := events(ctx, s, "field-2")
	if err != nil {
		return err
	}
	var ends []int64
	for _, e := range list {
		if e.Event.Subject == "cage/hog" && strings.Contains(e.Event.Message, "137") {
			ends = append(ends, e.Event.Time)
		}
	}
	slices.Sort(ends)
	if len(ends) < 4 {
		return fmt.Errorf("%d ends of the hog among the events: %+v", len(ends), list)
	}
	first, last := ends[1]-ends[0], ends[len(ends)-1]-ends[len(ends)-2]
	if last < first+500 {
		return fmt.Errorf("the pauses do not grow: it ended at %v", ends)
	}
	return nil
}

func procStatus(pid int) (map[string]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out, err
}

// limitsShow reads the limits of service quiet where the kernel holds them, cgroup v1
// and v2 alike.
func limitsShow(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	for _, want := range []struct{ controller, v1, v1value, v2, v2value string }{
		{"cpu", "cpu.cfs_quota_us", "25000", "cpu.max", "25000 100000"},
		{"memory", "memory.limit_in_bytes", "33554432", "memory.max", "33554432"},
		{"pids", "pids.max", "20", "pids.max", "20"},
	} {
		file, value := "", want.v2value
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			switch {
			case slices.Contains(strings.Split(f[1], ","), want.controller):
				file, value = filepath.Join("/sys/fs/cgroup", want.controller, f[2], want.v1), want.v1value
			case f[0] == "0" && file == "":
				file = filepath.Join("/sys/fs/cgroup", f[2], want.v2)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(got)) != value {
			return fmt.Errorf("%s holds %q, not %q", file, got, value)
		}
	}
	return nil
}
