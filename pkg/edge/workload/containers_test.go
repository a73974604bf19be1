package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/meter"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/wait"
)

func seconds(n float64) api.Duration { return api.Duration(n * float64(time.Second)) }

func TestContainerGetsWhatItsServiceAsksFor(t *testing.T) {
	d := newDevice(t)
	d.begin()
	app := d.app("web", api.Service{
		Name: "front", User: "web", Env: map[string]string{"A": "own"}, EnvConfig: []string{"settings"}, ReadOnly: true, WorkingDir: "/tmp",
		Resources: api.Resources{CPUs: 0.5, MemoryBytes: 64 << 20, Pids: 50},
		Mounts: []api.Mount{
			{Kind: api.MountVolume, Source: "state", Target: "/data"},
			{Kind: api.MountConfig, Source: "settings", Target: "/conf"},
			{Kind: api.MountConfig, Source: "settings/one.txt", Target: "/one.txt"},
			{Kind: api.MountSecret, Source: "key/token", Target: "/run/secrets/token", UID: 1000, Mode: 0o400},
			{Kind: api.MountConfig, Inline: "inline text", Target: "/inline"},
			{Kind: api.MountBind, Source: "shared/dir", Target: "/shared"},
		},
		Tmpfs:   []api.Tmpfs{{Target: "/scratch", SizeBytes: 1 << 20}},
		Ulimits: []api.Ulimit{{Name: "nofile", Soft: 512, Hard: 600}},
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "79"},
		Ports:   []api.Port{{Host: 18080, Container: 8080, Protocol: "tcp"}},
	}, api.Service{Name: "back", DependsOn: []api.Dependency{{Service: "front", Condition: "service_started"}}})
	app.Bundle.Volumes = []string{"state"}
	app.Configs = map[string]api.ConfigData{"settings": {Files: map[string][]byte{"one.txt": []byte("first"), "two.txt": []byte("zwei")}, Env: map[string]string{"A": "config", "B": "config"}}}
	app.Secrets = map[string]api.ConfigData{"key": {Files: map[string][]byte{"token": []byte("hush")}}}
	if _, ok := d.m.client.DiffService().(*lasting); !ok {
		t.Error("layers are not brought to the disk")
	}
	d.m.Set([]App{app})
	d.running("web")

	for path, want := range map[string]string{
		"/file?p=/data/seed": "from the image", "/file?p=/conf/two.txt": "zwei", "/file?p=/one.txt": "first",
		"/file?p=/run/secrets/token": "hush", "/file?p=/inline": "inline text",
		"/id": "1000 1000 [2000]front",
	} {
		if got := d.get("web", "front", path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	wait.Seen(t, "front reaches back by its name", func() (any, bool) { // it is started, and need not listen yet
		got := d.get("web", "front", "/dial?a=back:8080/version")
		return got, got == ""
	})
	env := d.get("web", "front", "/env")
	for _, want := range []string{"A=own", "B=config", "FROM_IMAGE=1", "HOSTNAME=front", "PATH="} {
		if !strings.Contains(env, want) {
			t.Errorf("environment lacks %q:\n%s", want, env)
		}
	}
	status := d.get("web", "front", "/file?p=/proc/self/status")
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t00000000a80425fb"} {
		if !strings.Contains(status, want) {
			t.Errorf("process status lacks %q:\n%s", want, status)
		}
	}
	for _, path := range []string{"/write?p=/rootfs&v=x", "/mount", "/unshare"} {
		if got := d.get("web", "front", path); !strings.HasPrefix(got, "ERROR") {
			t.Errorf("%s was allowed: %q", path, got)
		}
	}
	for _, path := range []string{"/write?p=/data/new&v=kept", "/write?p=/scratch/x&v=x"} {
		if got := d.get("web", "front", path); got != "" {
			t.Errorf("%s: %s", path, got)
		}
	}
	if got := d.get("web", "front", "/file?p=/proc/self/limits"); !strings.Contains(got, "600                  files") {
		t.Errorf("file limit not set:\n%s", got)
	}
	// From the host, by the published port, over the loopback too.
	resp, err := http.Get("http://127.0.0.1:18080/id")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	checkLimits(t, d.service("web", "front").Container)
	checkSecretsStayInMemory(t, d)
	hotUpdate(t, d, app)
}

func checkLimits(t *testing.T, id string) {
	t.Helper()
	read := func(paths ...string) string {
		for _, p := range paths {
			if b, err := os.ReadFile(p); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return "none of " + strings.Join(paths, ", ")
	}
	if got := read("/sys/fs/cgroup/memory/tributary/"+id+"/memory.limit_in_bytes", "/sys/fs/cgroup/tributary/"+id+"/memory.max"); got != "67108864" {
		t.Errorf("memory limit: %s", got)
	}
	if got := read("/sys/fs/cgroup/pids/tributary/"+id+"/pids.max", "/sys/fs/cgroup/tributary/"+id+"/pids.max"); got != "50" {
		t.Errorf("pids limit: %s", got)
	}
	if got := read("/sys/fs/cgroup/cpu/tributary/"+id+"/cpu.cfs_quota_us", "/sys/fs/cgroup/tributary/"+id+"/cpu.max"); got != "50000" && got != "50000 100000" {
		t.Errorf("CPU limit: %s", got)
	}
}

// checkSecretsStayInMemory looks for the canary on the device's disk; the tmpfs is
// another file system and is passed over.
func checkSecretsStayInMemory(t *testing.T, d *device) {
	t.Helper()
	disk := func(path string) uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return 0
		}
		return st.Dev
	}
	root := disk(d.dir)
	_ = filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if e.IsDir() && disk(path) != root {
			return filepath.SkipDir
		}
		if e.Type().IsRegular() && disk(path) == root {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("hush")) {
				t.Errorf("the secret is on the disk, in %s", path)
			}
		}
		return nil
	})
}

func hotUpdate(t *testing.T, d *device, app App) {
	t.Helper()
	id := d.service("web", "front").Container
	app.Configs = map[string]api.ConfigData{"settings": {Files: map[string][]byte{"one.txt": []byte("second, longer"), "three.txt": []byte("drei")}, Env: map[string]string{"A": "config", "B": "config"}}}
	app.Secrets = map[string]api.ConfigData{"key": {Files: map[string][]byte{"token": []byte("new")}}}
	d.m.Set([]App{app})
	d.wait("the config is new in the running container", func() bool {
		return d.get("web", "front", "/file?p=/conf/one.txt") == "second, longer" && d.get("web", "front", "/file?p=/one.txt") == "second, longer" &&
			d.get("web", "front", "/file?p=/conf/three.txt") == "drei" && d.get("web", "front", "/file?p=/run/secrets/token") == "new"
	})
	if got := d.get("web", "front", "/file?p=/conf/two.txt"); !strings.HasPrefix(got, "ERROR") {
		t.Errorf("a file that went is still there: %q", got)
	}
	if now := d.service("web", "front").Container; now != id {
		t.Errorf("a config change replaced the container: %s, was %s", now, id)
	}
}

func TestVolumesSurviveUpdatesAndGoWithTheApp(t *testing.T) {
	d := newDevice(t)
	d.begin()
	app := d.app("db", api.Service{Name: "s", Mounts: []api.Mount{{Kind: api.MountVolume, Source: "v", Target: "/data"}}, StopGrace: seconds(2)})
	app.Bundle.Volumes = []string{"v"}
	d.m.Set([]App{app})
	d.running("db")
	first := d.service("db", "s").Container
	d.get("db", "s", "/write?p=/data/x&v=kept")
	app = d.app("db", api.Service{Name: "s", Env: map[string]string{"VERSION": "2"}, Mounts: app.Bundle.Services[0].Mounts, StopGrace: seconds(2)})
	app.Bundle.Volumes, app.Digest = []string{"v"}, "sha256:second"
	d.m.Set([]App{app})
	d.wait("the new version is in force", func() bool {
		return d.state("db").Bundle == "sha256:second" && d.state("db").State == api.Running
	})
	if d.service("db", "s").Container == first {
		t.Error("the container was not replaced")
	}
	if got := d.get("db", "s", "/file?p=/data/x"); got != "kept" {
		t.Errorf("volume after the update holds %q", got)
	}
	d.m.Set(nil)
	d.wait("the volume went with the app", func() bool {
		_, err := os.Stat(d.m.root.app("db"))
		return os.IsNotExist(err)
	})
}

func TestAdoption(t *testing.T) {
	d := newDevice(t)
	store := &memoryStore{}
	mt := d.withMeter(store)
	d.begin()
	app := d.app("web", api.Service{Name: "front", Resources: api.Resources{MemoryBytes: 64 << 20}}, api.Service{Name: "back", Command: []string{"spew", "1000000"}})
	d.m.Set([]App{app})
	d.running("web")
	before := d.state("web").Services
	pids := d.pids("web", "front", "back")
	d.get("web", "front", "/burn?ms=200")
	total := map[string]*api.ContainerUse{}
	collect(t, mt, total)

	// edged is gone for a while; then containerd is killed and comes back, too.
	d.end()
	d.begin()
	d.m.Set([]App{app})
	d.running("web")
	mt = d.withMeter(store)
	d.get("web", "front", "/burn?ms=200")
	collect(t, mt, total)
	d.daemon.Kill()
	d.wait("the loss of containerd is named", func() bool { return len(d.m.Warnings()) == 1 })
	if err := d.daemon.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.wait("containerd is back", func() bool { return len(d.m.Warnings()) == 0 })
	d.running("web")
	after := d.state("web").Services
	for i := range before {
		if before[i].Container != after[i].Container || after[i].Restarts != 0 {
			t.Errorf("%s was touched: %+v, before %+v", after[i].Name, after[i], before[i])
		}
	}
	if now := d.pids("web", "front", "back"); fmt.Sprint(now) != fmt.Sprint(pids) {
		t.Errorf("processes changed: %v, before %v", now, pids)
	}
	// The writer of 1 MB/s went on writing all the time.
	first, last := d.written(), int64(0)
	d.wait("the log grows", func() bool { last = d.written(); return last > first+900_000 })

	// What was counted in parts is what the kernel counted as a whole.
	reader, err := meter.Host()
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]meter.Target{}
	for _, tgt := range d.m.Targets() {
		targets[tgt.Service] = tgt
	}
	whole, err := reader.Read(targets["front"])
	if err != nil {
		t.Fatal(err)
	}
	collect(t, mt, total)
	u := total["front"]
	if u.CPUMicros < whole.CPUMicros || u.CPUMicros > whole.CPUMicros+500_000 {
		t.Errorf("CPU counted %d µs, the kernel says %d", u.CPUMicros, whole.CPUMicros)
	}
	if u.CPUMicros < 10_000 || u.MemoryByteSeconds == 0 || u.RunMillis == 0 {
		t.Errorf("use is too small to be true: %+v", u)
	}
	ran := uint64(time.Since(targets["front"].Started).Milliseconds())
	if u.RunMillis > ran+100 || u.RunMillis+1000 < ran {
		t.Errorf("ran %d ms, counted %d", ran, u.RunMillis)
	}
}

func collect(t *testing.T, mt *meter.Meter, into map[string]*api.ContainerUse) {
	t.Helper()
	u, err := mt.Collect()
	if err != nil {
		t.Fatal(err)
	}
	for _, use := range u.Uses {
		sum := into[use.Service]
		if sum == nil {
			sum = &api.ContainerUse{}
			into[use.Service] = sum
		}
		sum.CPUMicros += use.CPUMicros
		sum.RunMillis += use.RunMillis
		sum.MemoryByteSeconds += use.MemoryByteSeconds
		sum.RxBytes += use.RxBytes
		sum.TxBytes += use.TxBytes
	}
	if err := mt.Commit(u.To); err != nil {
		t.Fatal(err)
	}
}

func (d *device) pids(app string, services ...string) []int {
	d.t.Helper()
	var out []int
	for _, s := range services {
		pid, err := d.m.pid(context.Background(), d.service(app, s).Container)
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, pid)
	}
	return out
}

// written reads how far the spewing app has come, from its own words on stderr.
func (d *device) written() (n int64) {
	var b bytes.Buffer
	if err := d.m.Logs(context.Background(), "web", "back", false, -1, &b); err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if _, rest, ok := strings.Cut(line, " stderr written "); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

func TestDeviceRestartsOffline(t *testing.T) {
	d := newDevice(t)
	store := &memoryStore{}
	mt := d.withMeter(store)
	d.begin()
	app := d.app("web",
		api.Service{Name: "once", Command: []string{"exit", "0"}},
		api.Service{Name: "front", DependsOn: []api.Dependency{{Service: "once", Condition: "service_completed_successfully"}},
			Ports: []api.Port{{Host: 18081, Container: 8080, Protocol: "tcp"}}, Mounts: []api.Mount{{Kind: api.MountSecret, Source: "key/token", Target: "/token"}}})
	app.Secrets = map[string]api.ConfigData{"key": {Files: map[string][]byte{"token": []byte("hush")}}}
	d.m.Set([]App{app})
	d.running("web")
	total := map[string]*api.ContainerUse{}
	collect(t, mt, total)
	before := d.service("web", "front")
	d.end()
	d.daemon.Kill()
	d.up.Close() // nobody is above
	powerCut(t, d)

	if err := d.daemon.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	d.begin()
	d.m.Set([]App{app})
	d.running("web")
	if got := d.service("web", "front"); got.Container != before.Container || got.Restarts != 1 {
		t.Errorf("after the restart: %+v, before %+v", got, before)
	}
	if got := d.service("web", "once"); got.State != api.Exited || got.Restarts != 0 {
		t.Errorf("a task that was done ran again: %+v", got)
	}
	if got := d.get("web", "front", "/file?p=/token"); got != "hush" {
		t.Errorf("secret after the restart: %q", got)
	}
	resp, err := http.Get("http://127.0.0.1:18081/id")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// powerCut ends every shim and container and clears what a reboot clears.
func powerCut(t *testing.T, d *device) {
	t.Helper()
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmd, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		if bytes.Contains(cmd, []byte("containerd-shim")) && bytes.Contains(cmd, []byte(d.daemon.Socket)) {
			var pid int
			fmt.Sscan(e.Name(), &pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	var procs []string
	for _, pattern := range []string{"/sys/fs/cgroup/pids/tributary/*/cgroup.procs", "/sys/fs/cgroup/tributary/*/cgroup.procs"} {
		found, _ := filepath.Glob(pattern)
		procs = append(procs, found...)
	}
	d.wait("all containers died", func() bool {
		alive := false
		for _, p := range procs {
			b, _ := os.ReadFile(p)
			for _, f := range strings.Fields(string(b)) {
				var pid int
				fmt.Sscan(f, &pid)
				if pid > 1 {
					alive = true
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		return !alive
	})
	d.unmountAll()
	// The namespace's own bridges and rules go with a reboot, too.
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" {
			_ = netlink.LinkDel(l)
		}
	}
	for _, dir := range []string{filepath.Join(d.daemon.Dir, "state"), d.config.Run} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRestartPolicyHealthAndRollback(t *testing.T) {
	d := newDevice(t)
	d.begin()
	check := &api.HealthCheck{Test: []string{"/app", "check", "http://127.0.0.1:8080/healthy"}, Interval: seconds(0.3), Timeout: seconds(3), Retries: 2, StartPeriod: seconds(0.5)}
	crash := d.app("crash", api.Service{Name: "s", Command: []string{"exit", "3"}, Restart: api.Restart{Policy: "on-failure", Max: 2}})
	web := d.app("web", api.Service{Name: "front", Health: check, Env: map[string]string{"VERSION": "1"}},
		api.Service{Name: "after", DependsOn: []api.Dependency{{Service: "front", Condition: "service_healthy"}}})
	d.m.Set([]App{crash, web})
	d.running("web")
	d.wait("the crashing app has used up its attempts", func() bool { return d.state("crash").State == api.Failed })
	if s := d.service("crash", "s"); s.Restarts != 2 || s.ExitCode == nil || *s.ExitCode != 3 {
		t.Errorf("crashed service: %+v", s)
	}

	// An update that never becomes healthy: the old one runs on, by name.
	old := d.service("web", "front").Container
	sick := d.app("web", api.Service{Name: "front", Health: check, Env: map[string]string{"VERSION": "2", "SICK": "1"}}, web.Bundle.Services[1])
	sick.Digest = "sha256:sick"
	d.m.Set([]App{sick})
	d.wait("the update was given up", func() bool {
		s := d.service("web", "front")
		return s.State == api.Running && strings.Contains(s.Message, "update failed")
	})
	if s := d.service("web", "front"); s.Container != old || s.Restarts != 0 {
		t.Errorf("the old instance was touched: %+v", s)
	}
	if d.state("web").Bundle != web.Digest {
		t.Errorf("in force is %s, want the old %s", d.state("web").Bundle, web.Digest)
	}
	if got := d.get("web", "front", "/version"); got != "1" {
		t.Errorf("version %q answers", got)
	}
	d.wait("an event tells of it", func() bool { return d.sawEvent("app.update-failed") })
	d.wait("the failed instance is gone", func() bool { d.m.mu.Lock(); defer d.m.mu.Unlock(); return len(d.m.instances) == 2 })

	// Nor is it judged by the check of an update that asks for what it has not.
	picky := d.app("web", api.Service{Name: "front", Health: &api.HealthCheck{Test: []string{"/app", "check", "http://127.0.0.1:8080/nonesuch"}, Interval: seconds(0.1), Timeout: seconds(3), Retries: 1}, Env: map[string]string{"VERSION": "2b"}}, web.Bundle.Services[1])
	picky.Digest = "sha256:picky"
	failures := d.countEvents("app.update-failed")
	d.m.Set([]App{picky})
	d.wait("the second update was given up", func() bool { return d.countEvents("app.update-failed") > failures })
	d.wait("the first version runs on", func() bool {
		s := d.service("web", "front")
		return s.State == api.Running && strings.Contains(s.Message, "update failed")
	})
	if s := d.service("web", "front"); s.Container != old || s.Restarts != 0 {
		t.Errorf("the old instance was touched: %+v", s)
	}

	// The next update is well, and replaces it without a gap.
	well := d.app("web", api.Service{Name: "front", Health: check, Env: map[string]string{"VERSION": "3"}}, web.Bundle.Services[1])
	well.Digest = "sha256:well"
	d.m.Set([]App{well})
	d.wait("the third version is in force", func() bool { return d.state("web").Bundle == "sha256:well" && d.state("web").State == api.Running })
	if got := d.get("web", "front", "/version"); got != "3" {
		t.Errorf("version %q answers", got)
	}

	// It falls sick in its life: it is restarted.
	d.get("web", "front", "/fail")
	d.wait("the sick container was restarted", func() bool {
		s := d.service("web", "front")
		return s.Restarts == 1 && s.State == api.Running
	})
}

// caller asks a published port again and again, over a new connection each time, and
// keeps what came back.
type caller struct {
	stop chan struct{}
	done chan struct{}

	answers  map[string]int
	failures int
	err      error         // of the last failure
	silence  time.Duration // the longest between two answers
}

func call(url string) *caller {
	c := &caller{stop: make(chan struct{}), done: make(chan struct{}), answers: map[string]int{}}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		defer close(c.done)
		for last := time.Now(); ; {
			select {
			case <-c.stop:
				return
			default:
			}
			resp, err := client.Get(url)
			var b []byte
			if err == nil {
				b, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err != nil {
				c.failures++
				c.err = err
				continue
			}
			c.answers[string(b)]++
			c.silence = max(c.silence, time.Since(last))
			last = time.Now()
		}
	}()
	return c
}

func (c *caller) end() *caller {
	close(c.stop)
	<-c.done
	return c
}

// A service with a host port answers all the time: through an update that fails, by the
// version that it had, and through one that is well, by one or the other.
func TestUpdatesWithHostPort(t *testing.T) {
	d := newDevice(t)
	d.begin()
	const url = "http://127.0.0.1:18082/version"
	svc := api.Service{Name: "front", Ports: []api.Port{{Host: 18082, Container: 8080, Protocol: "tcp"}}, Env: map[string]string{"VERSION": "1"}, StopGrace: seconds(2)}
	v1 := d.app("web", svc)
	d.m.Set([]App{v1})
	d.running("web")
	d.get("web", "front", "/version")
	update := func(digest, version string, command ...string) {
		svc.Env, svc.Command = map[string]string{"VERSION": version}, command
		app := d.app("web", svc)
		app.Digest = digest
		d.m.Set([]App{app})
	}
	old := d.service("web", "front").Container

	c := call(url)
	update("sha256:v2", "2", "exit", "9")
	d.wait("the update was given up", func() bool {
		s := d.service("web", "front")
		return s.State == api.Running && strings.Contains(s.Message, "update failed") && strings.Contains(s.Message, "exited with 9")
	})
	d.wait("the failed instance is gone", func() bool { d.m.mu.Lock(); defer d.m.mu.Unlock(); return len(d.m.instances) == 1 })
	if c.end(); c.failures > 0 || len(c.answers) != 1 || c.answers["1"] == 0 {
		t.Errorf("through a bad update: answers %v, %d failures, %v", c.answers, c.failures, c.err)
	}
	if s := d.service("web", "front"); s.Container != old || s.Restarts != 0 {
		t.Errorf("the old instance was touched: %+v", s)
	}
	t.Logf("bad update: %v answers, longest silence %s", c.answers, c.silence)

	c = call(url)
	update("sha256:v3", "3")
	d.wait("the new version is in force", func() bool { return d.state("web").Bundle == "sha256:v3" && d.state("web").State == api.Running })
	d.wait("the old instance is gone", func() bool { d.m.mu.Lock(); defer d.m.mu.Unlock(); return len(d.m.instances) == 1 })
	// What the old one had accepted when it was told to stop may be cut off.
	if c.end(); c.failures > 2 || c.answers["1"] == 0 || c.answers["3"] == 0 || c.answers["2"] > 0 {
		t.Errorf("through a good update: answers %v, %d failures, %v", c.answers, c.failures, c.err)
	}
	t.Logf("good update: %v answers, %d failures, longest silence %s", c.answers, c.failures, c.silence)
	if d.m.instances[d.service("web", "front").Container].in.Held {
		t.Error("the new instance is not in charge")
	}

	// It stays in charge when edged, and then its own process, are restarted.
	app := d.m.apps
	d.end()
	d.begin()
	d.m.Set(app)
	d.running("web")
	if err := syscall.Kill(d.pids("web", "front")[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.wait("its process runs again", func() bool {
		s := d.service("web", "front")
		return s.Restarts == 1 && s.State == api.Running
	})
	d.wait("the port answers with the new version", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b) == "3"
	})
}

func TestExecTTYLogsTopAndHostNetwork(t *testing.T) {
	d := newDevice(t)
	d.begin()
	d.m.Set([]App{d.app("a", api.Service{Name: "net"}, api.Service{Name: "host", NetworkMode: "host", Command: []string{"serve", "127.0.0.1:18090"}}, api.Service{Name: "none", NetworkMode: "none", Command: []string{"serve", "127.0.0.1:8080"}})})
	d.running("a")
	ctx, cancel := context.WithTimeout(context.Background(), wait.Limit)
	defer cancel()

	var out, errOut bytes.Buffer
	code, err := d.m.Exec(ctx, ExecRequest{App: "a", Service: "net", Argv: []string{"/app", "echo", "hi"}, Stdin: strings.NewReader("from stdin"), Stdout: &out, Stderr: &errOut})
	if err != nil || code != 0 || out.String() != "hi\nfrom stdin" {
		t.Errorf("exec: %d, %v, %q", code, err, out.String())
	}
	if code, err = d.m.Exec(ctx, ExecRequest{App: "a", Service: "net", Argv: []string{"/app", "exit", "7"}}); err != nil || code != 7 {
		t.Errorf("exec exit: %d, %v", code, err)
	}
	out.Reset()
	resize := make(chan Size, 1)
	resize <- Size{Width: 123, Height: 45}
	code, err = d.m.Exec(ctx, ExecRequest{App: "a", Service: "net", Argv: []string{"/app", "tty"}, TTY: true, Stdout: &out, Resize: resize})
	if err != nil || code != 0 || !strings.Contains(out.String(), "size 123 45") {
		t.Errorf("exec with a terminal: %d, %v, %q", code, err, out.String())
	}
	if _, err := d.m.Exec(ctx, ExecRequest{App: "a", Service: "nobody", Argv: []string{"/app"}}); api.CodeOf(err) != api.NotFound {
		t.Errorf("exec in a service that is not there: %v", err)
	}

	if got := d.get("a", "none", "/id"); !strings.Contains(got, "none") {
		t.Errorf("dial into a container without a network: %q", got)
	}
	conn, err := d.m.Dial(ctx, "a", "host", 18090)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()

	followLogs(t, ctx, d)

	reader, err := meter.Host()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := d.m.Top(ctx, reader)
	if err != nil || len(rows) != 3 {
		t.Fatalf("top: %v, %v", rows, err)
	}
	for _, r := range rows {
		if len(r.Processes) != 1 || !strings.Contains(r.Processes[0].Command, "/app") || r.Processes[0].RSSBytes == 0 || r.Reading.Pids == 0 {
			b, _ := json.Marshal(r)
			t.Errorf("top row: %s", b)
		}
	}
}

func followLogs(t *testing.T, ctx context.Context, d *device) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := net.Pipe()
	go func() { _ = d.m.Logs(ctx, "a", "net", true, -1, pw); pw.Close() }()
	buf := make([]byte, 4096)
	_ = pr.SetReadDeadline(time.Now().Add(wait.Limit))
	n, err := pr.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "stdout listening on :8080") {
		t.Errorf("logs: %q, %v", buf[:n], err)
	}
}

func TestImagesComeWhenTheyCanAndGoWhenUnnamed(t *testing.T) {
	d := newDevice(t)
	d.begin()
	app := d.app("web", api.Service{Name: "s"})
	d.m.Set([]App{app})
	d.running("web")
	im, err := tools.AppImage("acme/other", v1.Config{Env: []string{"SECOND=1"}})
	if err != nil {
		t.Fatal(err)
	}
	im.Files = append(im.Files, workloadtest.File{Path: "only-in-second", Data: []byte("x"), Mode: 0o644})
	second, err := d.up.Push(im)
	if err != nil {
		t.Fatal(err)
	}
	away := strings.Replace(second, "sha256:", "sha256:0", 1)[:len(second)]
	next := d.app("web", api.Service{Name: "s", Image: away})
	next.Digest = "sha256:next"
	d.m.Set([]App{next})
	d.wait("the missing image is told of, and the old version runs on", func() bool {
		s := d.service("web", "s")
		return s.State == api.Running && strings.Contains(s.Message, "update waits: image acme/other@")
	})
	next = d.app("web", api.Service{Name: "s", Image: second})
	next.Digest = "sha256:second"
	d.m.Set([]App{next})
	d.wait("the second image runs", func() bool { return d.state("web").Bundle == "sha256:second" })
	ctx := namespaces.WithNamespace(context.Background(), d.m.cfg.Namespace)
	d.wait("the first image is gone, layers too", func() bool {
		list, err := d.m.client.ImageService().List(ctx)
		if err != nil || len(list) != 1 || !strings.HasSuffix(list[0].Name, second) {
			return false
		}
		n := 0
		err = d.m.client.SnapshotService(d.m.cfg.Snapshotter).Walk(ctx, func(context.Context, snapshots.Info) error { n++; return nil })
		return err == nil && n == 2 // the layer and the container's own
	})
}

func TestHoldKeepsWhatIsHere(t *testing.T) {
	d := newDevice(t)
	d.begin()
	d.m.Set([]App{d.app("web", api.Service{Name: "s", Restart: api.Restart{Policy: "always"}})})
	d.running("web")
	id := d.service("web", "s").Container
	d.end()
	d.begin()
	d.m.Set([]App{{Bundle: api.Bundle{App: "web"}, Hold: "the bundle cannot be fetched"}, {Bundle: api.Bundle{App: "new"}, Hold: "the bundle cannot be fetched"}})
	d.wait("the held app runs and says why it is held", func() bool {
		a := d.state("web")
		return a.State == api.Running && strings.Contains(a.Message, "cannot be fetched") && d.state("new").State == api.Pending
	})
	_ = syscall.Kill(d.pids("web", "s")[0], syscall.SIGKILL)
	d.wait("it is restarted even so", func() bool { s := d.service("web", "s"); return s.State == api.Running && s.Restarts == 1 })
	if now := d.service("web", "s").Container; now != id {
		t.Errorf("container %s, was %s", now, id)
	}
}

// Whatever is killed, whenever: the wanted version runs in the end, once, and the
// service that did not change was never touched.
func TestKillsAtRandomMoments(t *testing.T) {
	d := newDevice(t)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	d.begin()
	still := api.Service{Name: "still"}
	version := func(n int) App {
		app := d.app("web", still, api.Service{Name: "moving", Env: map[string]string{"VERSION": fmt.Sprint(n)}, StopGrace: seconds(1)})
		app.Digest = fmt.Sprint("sha256:", n)
		return app
	}
	d.m.Set([]App{version(0)})
	d.running("web")
	before := d.service("web", "still")
	pid := d.pids("web", "still")
	const rounds = 6
	for n := 1; n <= rounds; n++ {
		d.m.Set([]App{version(n)})
		pause := time.NewTimer(time.Duration(random.IntN(400)) * time.Millisecond)
		<-pause.C
		switch random.IntN(3) {
		case 0:
			d.daemon.Kill()
			if err := d.daemon.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
		case 1:
			d.end()
			d.begin()
			d.m.Set([]App{version(n)})
		case 2:
			d.end()
			d.daemon.Kill()
			if err := d.daemon.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			d.begin()
			d.m.Set([]App{version(n)})
		}
	}
	d.wait("the last version is in force", func() bool {
		a := d.state("web")
		return a.State == api.Running && a.Bundle == fmt.Sprint("sha256:", rounds)
	})
	if got := d.get("web", "moving", "/version"); got != fmt.Sprint(rounds) {
		t.Errorf("version %q answers", got)
	}
	if after := d.service("web", "still"); after.Container != before.Container || after.Restarts != 0 || fmt.Sprint(d.pids("web", "still")) != fmt.Sprint(pid) {
		t.Errorf("the unchanged service was touched: %+v, before %+v", after, before)
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if len(d.m.instances) != 2 {
		t.Errorf("%d containers are left", len(d.m.instances))
	}
}
