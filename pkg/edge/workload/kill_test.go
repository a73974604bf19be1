package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

// childVariable makes the test program a process that runs a manager and nothing
// else, to be killed.
const childVariable = "TRIBUTARY_TEST_MANAGER"

type childOrder struct {
	Socket, Root, Run, CNIBin, LogHelper, URL string
	Apps                                      []App
}

// runChild runs the apps of an order file, which may be exchanged meanwhile.
func runChild(path string) int {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, "child:", err); return 1 }
	var order childOrder
	read := func() error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &order)
	}
	if err := read(); err != nil {
		return fail(err)
	}
	m, err := New(context.Background(), Config{
		Socket: order.Socket, Root: order.Root, Run: order.Run, CNIBin: order.CNIBin, LogHelper: order.LogHelper, Upstream: workloadtest.Fixed(order.URL),
	})
	if err != nil {
		return fail(err)
	}
	go func() {
		last := time.Time{}
		for range time.Tick(5 * time.Millisecond) {
			if info, err := os.Stat(path); err == nil && info.ModTime() != last && read() == nil {
				last = info.ModTime()
				m.Set(order.Apps)
			}
		}
	}()
	_ = m.Run(context.Background())
	return 0
}

func (d *device) order(path string, apps ...App) {
	d.t.Helper()
	base, _, err := d.up.Endpoint()
	if err != nil {
		d.t.Fatal(err)
	}
	c := d.config
	b, err := json.Marshal(childOrder{c.Socket, c.Root, c.Run, c.CNIBin, c.LogHelper, base.String(), apps})
	if err == nil {
		err = writeAtomic(path, b, 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// edged is killed in the middle of whatever it does. The wanted version runs in the
// end, the unchanged service was never touched, and nothing is left lying about.
func TestEdgedIsKilledAtRandomMoments(t *testing.T) {
	d := newDevice(t)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 2))
	version := func(n int) App {
		app := d.app("web", api.Service{Name: "still"}, api.Service{Name: "moving", Env: map[string]string{"VERSION": fmt.Sprint(n)}, StopGrace: seconds(1), Ports: []api.Port{{Host: 18099, Container: 8080, Protocol: "tcp"}}})
		app.Digest = fmt.Sprint("sha256:", n)
		return app
	}
	d.begin()
	d.m.Set([]App{version(0)})
	d.running("web")
	before, pid := d.service("web", "still"), d.pids("web", "still")
	d.end()
	path := filepath.Join(d.dir, "order.json")
	const rounds = 10
	for n := 1; n <= rounds; n++ {
		d.order(path, version(n))
		child := exec.Command("/proc/self/exe", "-test.run=^$")
		child.Env = append(os.Environ(), childVariable+"="+path)
		child.Stderr = os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		moment := time.NewTimer(time.Duration(20+random.IntN(700)) * time.Millisecond)
		<-moment.C
		_ = child.Process.Kill()
		_ = child.Wait()
	}
	d.begin()
	d.m.Set([]App{version(rounds)})
	d.wait("the last version is in force", func() bool {
		a := d.state("web")
		return a.State == api.Running && a.Bundle == fmt.Sprint("sha256:", rounds)
	})
	if after := d.service("web", "still"); after.Container != before.Container || after.Restarts != 0 || fmt.Sprint(d.pids("web", "still")) != fmt.Sprint(pid) {
		t.Errorf("the unchanged service was touched: %+v, before %+v", after, before)
	}
	d.nothingLeft(t, 2)
}

// nothingLeft checks that the host holds what n containers need, and no more.
func (d *device) nothingLeft(t *testing.T, n int) {
	t.Helper()
	if spaces, _ := os.ReadDir(filepath.Join(d.config.Run, "net", "ns")); len(spaces) != n {
		t.Errorf("%d network namespaces for %d containers", len(spaces), n)
	}
	leases, _ := filepath.Glob(filepath.Join(d.config.Run, "net", "ipam", "*", "10.*"))
	if len(leases) != n {
		t.Errorf("%d leases for %d containers: %v", len(leases), n, leases)
	}
	rules, _ := exec.Command("nft", "list", "ruleset").Output()
	if got := strings.Count(string(rules), "tcp dport 18099"); got != 1 {
		t.Errorf("%d rules publish the port:\n%s", got, rules)
	}
	ctx := namespaces.WithNamespace(context.Background(), d.m.cfg.Namespace)
	snaps := 0
	if err := d.m.client.SnapshotService(d.m.cfg.Snapshotter).Walk(ctx, func(context.Context, snapshots.Info) error { snaps++; return nil }); err != nil || snaps != n+1 {
		t.Errorf("%d snapshots for %d containers, %v", snaps, n, err)
	}
	files, _ := filepath.Glob(filepath.Join(d.config.Run, "apps", "*", "*"))
	if len(files) != n {
		t.Errorf("%d folders of files for %d containers: %v", len(files), n, files)
	}
}
