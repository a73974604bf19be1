package network

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
	"tributary.dev/tributary/tests/wait"
)

var tools workloadtest.Tools

func TestMain(m *testing.M) {
	if path := os.Getenv(entersFirst); path != "" {
		os.Exit(enterFirst(path))
	}
	os.Exit(workloadtest.Isolate(func() int {
		flag.Parse()
		if workloadtest.Missing() == "" && !testing.Short() {
			dir, err := os.MkdirTemp("", "network-tools-")
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer os.RemoveAll(dir)
			if tools, err = workloadtest.Build(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		return m.Run()
	}))
}

func newManager(t *testing.T) *Manager {
	t.Helper()
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	if testing.Short() {
		t.Skip("needs more time than -short leaves: builds the CNI plugins")
	}
	dir := t.TempDir()
	m, err := New(Config{Bin: tools.CNIBin, State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Pool: "10.99.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// serve answers with a word on a port inside a container's namespace.
func serve(t *testing.T, m *Manager, id string, port int, word string) {
	t.Helper()
	var l net.Listener
	err := Enter(m.Namespace(id), func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprint(":", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word)
			c.Close()
		}
	}()
}

// ask connects from inside a namespace ("" is the host's) and reads the word.
func ask(m *Manager, from, addr string) (string, error) {
	return askFor(m, from, addr, wait.Limit)
}

// askFor is ask with an end, for where nobody should answer.
func askFor(m *Manager, from, addr string, limit time.Duration) (string, error) {
	var word []byte
	dial := func() error {
		c, err := net.DialTimeout("tcp4", addr, limit)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		word, err = io.ReadAll(c)
		return err
	}
	var err error
	if from == "" {
		err = dial()
	} else {
		err = Enter(m.Namespace(from), dial)
	}
	return string(word), err
}

func TestContainersMeetOnTheirNetworksOnly(t *testing.T) {
	m := newManager(t)
	ctx := context.Background()
	attach := func(r Request) Result {
		t.Helper()
		res, err := m.Attach(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Detach(ctx, r) })
		if again, err := m.Attach(ctx, r); err != nil || fmt.Sprint(again) != fmt.Sprint(res) {
			t.Fatalf("a second Attach gives %v, %v; the first gave %v", again, err, res)
		}
		return res
	}
	web := attach(Request{ID: "web-1", App: "shop", Networks: []string{"front", "back"}, Ports: []Port{{Host: 7080, Container: 80, Protocol: "tcp"}}})
	db := attach(Request{ID: "db-1", App: "shop", Networks: []string{"back"}})
	other := attach(Request{ID: "x-1", App: "other", Networks: []string{"default"}})
	if len(web.Addresses) != 2 || len(db.Addresses) != 1 {
		t.Fatalf("addresses: %v %v", web, db)
	}
	serve(t, m, "web-1", 80, "web")
	serve(t, m, "db-1", 5432, "db")
	serve(t, m, "x-1", 80, "other")

	dbAddr := net.JoinHostPort(db.Addresses[0].String(), "5432")
	if got, err := ask(m, "web-1", dbAddr); got != "db" {
		t.Errorf("web to db: %q, %v", got, err)
	}
	if got, err := ask(m, "", dbAddr); got != "db" {
		t.Errorf("host to db: %q, %v", got, err)
	}
	for _, addr := range []string{dbAddr, net.JoinHostPort(web.Addresses[0].String(), "80")} {
		if got, err := askFor(m, "x-1", addr, time.Second); err == nil {
			t.Errorf("another app reached %s: %q", addr, got)
		}
	}
	// A published port is open to the host, by its loopback too, and to other apps.
	gateway := netip.AddrFrom4([4]byte{10, 99, other.Addresses[0].As4()[2], 1})
	for _, from := range []struct{ ns, addr string }{{"", "127.0.0.1:7080"}, {"x-1", gateway.String() + ":7080"}} {
		if got, err := ask(m, from.ns, from.addr); got != "web" {
			t.Errorf("published port from %q: %q, %v", from.ns, got, err)
		}
	}
}

// A published port moves from one container to another without a moment in which
// nobody answers, and moving it again changes nothing.
func TestPortsMoveBetweenContainers(t *testing.T) {
	m := newManager(t)
	ctx := context.Background()
	ports := []Port{{Host: 7082, Container: 80, Protocol: "tcp"}, {Host: 7082, Container: 80, Protocol: "udp"}}
	before := Request{ID: "web-3", App: "moving", Networks: []string{"n"}, Ports: ports}
	after := Request{ID: "web-4", App: "moving", Networks: []string{"n"}, Ports: ports, Hold: true}
	for _, r := range []Request{before, after} {
		if _, err := m.Attach(ctx, r); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Detach(ctx, r) })
	}
	serve(t, m, before.ID, 80, "before")
	serve(t, m, after.ID, 80, "after")
	if got, err := ask(m, "", "127.0.0.1:7082"); got != "before" {
		t.Fatalf("with the new one held: %q, %v", got, err)
	}
	stop, asked := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				asked <- nil
				return
			default:
			}
			if got, err := ask(m, "", "127.0.0.1:7082"); got == "" {
				asked <- fmt.Errorf("nobody answers: %v", err)
				return
			}
		}
	}()
	for i := range 3 {
		to, from, want := after, before, "after"
		if i == 1 {
			to, from, want = before, after, "before"
		}
		for range 2 { // moving twice is moving once
			if err := m.Move(ctx, to, []Request{from}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := ask(m, "", "127.0.0.1:7082"); got != want {
			t.Fatalf("move %d: %q, %v", i, got, err)
		}
	}
	close(stop)
	if err := <-asked; err != nil {
		t.Error(err)
	}
	for _, r := range []Request{before, after} {
		if err := m.Detach(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if rules, _ := exec.Command("nft", "list", "ruleset").Output(); strings.Contains(string(rules), "7082") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

func TestDetachGivesEverythingBack(t *testing.T) {
	m := newManager(t)
	ctx := context.Background()
	r := Request{ID: "web-2", App: "shop", Networks: []string{"n"}, Ports: []Port{{Host: 7081, Container: 80, Protocol: "tcp"}}}
	first, err := m.Attach(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Detach(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := m.Detach(ctx, r); err != nil {
		t.Errorf("a second Detach: %v", err)
	}
	if _, err := os.Stat(m.Namespace(r.ID)); !os.IsNotExist(err) {
		t.Errorf("the namespace is still there: %v", err)
	}
	rules, _ := exec.Command("nft", "list", "ruleset").Output()
	if strings.Contains(string(rules), "7081") || strings.Contains(string(rules), first.Addresses[0].String()+" ") {
		t.Errorf("rules are left:\n%s", rules)
	}
	// Leases left by a power cut do not stand in the way of a new start.
	if _, err := m.Attach(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := removeNamespace(m.Namespace(r.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Attach(ctx, r); err != nil {
		t.Errorf("after a power cut: %v", err)
	}
	if err := m.Detach(ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := m.Drop("shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName(BridgeName("shop", "n")); err == nil {
		t.Error("the bridge is still there")
	}
	if len(m.Apps()) != 0 {
		t.Errorf("subnets are still given out: %v", m.Apps())
	}
}

func TestSubnetsNeverOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, 0}), rapid.IntRange(20, 24).Draw(t, "bits")).Masked()
		var taken []netip.Prefix
		for range rapid.IntRange(0, 3).Draw(t, "others") {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, rapid.Byte().Draw(t, "third"), rapid.Byte().Draw(t, "fourth")}), rapid.IntRange(18, 32).Draw(t, "length")).Masked()
			taken = append(taken, p)
		}
		for {
			p, err := choose(pool, taken)
			if err != nil {
				break
			}
			if !pool.Contains(p.Addr()) || p.Bits() != 24 {
				t.Fatalf("%s is not a /24 of %s", p, pool)
			}
			for _, o := range taken {
				if p.Overlaps(o) {
					t.Fatalf("%s overlaps %s", p, o)
				}
			}
			taken = append(taken, p)
			if len(taken) > 300 {
				t.Fatal("the pool never ends")
			}
		}
	})
}

func TestATornBookBeginsAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "networks.json")
	if err := os.WriteFile(path, []byte(`{"subnets":{"a/b":"10.`), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := readBook(path)
	if err != nil || b.Subnets == nil || len(b.Subnets) != 0 {
		t.Errorf("%+v, %v", b, err)
	}
}

func FuzzBook(f *testing.F) {
	f.Add([]byte(`{"subnets":{"a/b":"10.1.2.0/24"}}`))
	f.Add([]byte(`{"subnets":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "networks.json")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := readBook(path)
		if err != nil || b.Subnets == nil {
			t.Fatalf("%+v, %v", b, err)
		}
	})
}
