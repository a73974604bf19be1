package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/place"
	"tributary.dev/tributary/tests/wait"
)

// asCored has the test's own program be cored, so that it can be killed.
const asCored = "TRIBUTARY_TEST_AS_CORED"

// pairing is two cores on one PostgreSQL, one Mosquitto and one folder, each a process.
type pairing struct {
	t      *testing.T
	dir    string
	pg     string
	broker string
	token  string // by which boxes come in
	cores  [2]*replica
}

// replica is one of them: running talks to it.
type replica struct {
	*running
	p       *pairing
	name    string
	address string
	cmd     *exec.Cmd
}

// twoCores starts a broker and two replicas.
func twoCores(t *testing.T) *pairing {
	t.Helper()
	if _, err := exec.LookPath("mosquitto"); err != nil || mqtt.FindDynsec() == "" {
		t.Skipf("needs Debian's package mosquitto (version 2): %v", err)
	}
	p := &pairing{t: t, dir: filepath.Join(t.TempDir(), "core"), pg: databasetest.Postgres(t), broker: place.Left()}
	at := filepath.Join(t.TempDir(), "broker")
	if _, err := cored(t, "mosquitto-config", "--data", p.dir, "--out", at, "--listen", p.broker, "--names", "127.0.0.1", "--user", "root"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mosquitto", "-c", filepath.Join(at, mqtt.MosquittoConf))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for i, name := range []string{"a", "b"} {
		p.cores[i] = &replica{p: p, name: name, address: place.Left()}
		p.cores[i].start()
	}
	wait.Until(t, "both have a part of the devices", func() bool { return p.parts() == [2]int{slots / 2, slots / 2} })
	return p
}

// join lets a box in by way of a replica, all by one token.
func (r *replica) join(name string) *identity.Identity {
	r.t.Helper()
	if r.p.token == "" {
		var minted api.Object
		var status api.JoinTokenStatus
		r.must("POST", "/api/v1/jointokens", tokenDoc, &minted)
		if err := json.Unmarshal(minted.Status, &status); err != nil {
			r.t.Fatal(err)
		}
		r.p.token = status.Token
	}
	return r.enrol(r.p.token, name)
}

// parts counts whose the slots of devices are.
func (p *pairing) parts() (n [2]int) {
	p.t.Helper()
	db, err := database.Open(p.t.Context(), database.Config{Place: p.pg, Schema: store.Schema})
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	for i, r := range p.cores {
		if err := db.QueryRowContext(p.t.Context(), "SELECT count(*) FROM leases WHERE name LIKE 'devices/%' AND holder LIKE ?", r.name+"#%").Scan(&n[i]); err != nil {
			p.t.Fatal(err)
		}
	}
	return n
}

// start starts the process, and waits until it is ready.
func (r *replica) start() {
	t := r.p.t
	t.Helper()
	r.cmd = exec.Command(os.Args[0], "run", "--data", r.p.dir, "--replica", r.name, "--replica-address", r.address, "--database", r.p.pg, "--mqtt-broker", r.p.broker,
		"--listen-https", r.address, "--names", "127.0.0.1", "--log-level", cmp.Or(os.Getenv("TRIBUTARY_LOG"), "warn"))
	r.cmd.Env = append(os.Environ(), asCored+"=1")
	r.cmd.Stdout, r.cmd.Stderr = t.Output(), t.Output()
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := r.cmd
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	wait.Until(t, "replica "+r.name+" is ready", func() bool {
		if r.running == nil {
			root, err := os.ReadFile(filepath.Join(r.p.dir, "ca/root.crt"))
			token, err2 := os.ReadFile(filepath.Join(r.p.dir, "admin.token"))
			if err != nil || err2 != nil {
				return false
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(root)
			r.running = &running{t: t, url: "https://" + r.address, token: strings.TrimSpace(string(token)),
				http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}}}}
		}
		resp, err := r.http.Get(r.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends the process as a power cut would.
func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.http.CloseIdleConnections()
}

// usedNow is what a replica says that a device used, and in how many intervals; nothing while it
// has no answer.
func (r *replica) usedNow(name string) (millis, intervals uint64) {
	var u server.UsageReport
	if e := r.call("GET", "/api/v1/usage?device="+name, "", &u); e != nil {
		return 0, 0
	}
	for _, of := range u.Totals {
		millis += of.RunMillis
	}
	return millis, u.Intervals
}

// serves has a box answer commands, by a stream that it dials to the core of an address.
func (b *box) serves(address func() string) {
	parent := func() (*url.URL, *tls.Config, error) {
		return &url.URL{Scheme: "https", Host: address()}, b.live.ClientTLS(identity.CoreName), nil
	}
	seen := new(stream.Replay)
	b.end.OnCommand(func(raw []byte) {
		c, err := stream.Verify(raw, b.live.Get().Trust, b.id.ID(), time.Now(), seen)
		if err != nil {
			b.t.Error("a command that does not verify: ", err)
			return
		}
		conn, err := stream.Answer(context.Background(), b.live, parent, c)
		if err != nil {
			return // its core was killed, perhaps
		}
		_, _ = io.WriteString(conn.Writer(stream.Stdout), strings.Join(c.Argv, " "))
		_ = conn.Finish(0, nil, time.Second)
	})
}

// exec runs a command on a device by way of a replica.
func (r *replica) exec(name, word string) (string, error) {
	command := stream.Command{Verb: stream.Exec, App: "web", Argv: []string{word}}
	u, err := url.Parse(r.url + "/api/v1/devices/" + name + "/exec?" + command.Query().Encode())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	conf := r.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	conn, err := stream.Dial(ctx, u, conf, http.Header{"Authorization": {"Bearer " + r.token}})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	_, err = stream.Run(ctx, conn, stream.Local{Stdin: strings.NewReader(""), Stdout: &out})
	return out.String(), err
}

// watch reads the changes of sites at a replica, until something ends it.
func (r *replica) watch(saw func(name string)) (end func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", r.url+"/api/v1/sites?watch=true", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.http.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatal(resp, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if _, name, ok := strings.Cut(lines.Text(), `"name":"site-`); ok {
				saw("site-" + name[:strings.IndexByte(name, '"')])
			}
		}
	}()
	return func() { cancel(); resp.Body.Close(); <-done }
}

func siteDoc(n int) string {
	return fmt.Sprintf("apiVersion: tributary/v1\nkind: Site\nmetadata: {name: site-%d}\nspec: {}\n", n)
}

// Of two cores each takes in a part of the devices, and either serves people: what one writes the
// other's watchers see, and a command given to one is answered though the device dials in at the
// other. What is done once is noted once. A core that stops hands over at once.
func TestTwoReplicas(t *testing.T) {
	p := twoCores(t)
	a, b := p.cores[0], p.cores[1]
	var mu sync.Mutex
	saw := map[string]bool{}
	end := b.watch(func(name string) { mu.Lock(); saw[name] = true; mu.Unlock() })
	defer end()
	a.must("POST", "/api/v1/apply", siteDoc(1), nil)
	wait.Until(t, "who watches at b sees what a wrote", func() bool { mu.Lock(); defer mu.Unlock(); return saw["site-1"] })

	var boxes []*box
	for i := range 6 {
		at := p.cores[i%2]
		box := attach(t, at.join("box-"+strconv.Itoa(i)), p.broker)
		box.serves(func() string { return b.address }) // whoever asks
		box.report("version", "test")
		box.use(0, 1000, 1000)
		boxes = append(boxes, box)
	}
	for i := range boxes {
		name := "box-" + strconv.Itoa(i)
		for _, r := range p.cores {
			wait.Until(t, name+" is online and counted at "+r.name, func() bool {
				millis, _ := r.usedNow(name)
				s := r.device(name)
				return millis == 1000 && s.Online && s.Version == "test" && s.Parent == "core"
			})
			wait.Seen(t, name+" answers a command given to "+r.name, func() (any, bool) {
				out, err := r.exec(name, "hello-"+r.name)
				return err, out == "hello-"+r.name
			})
		}
	}
	a.must("POST", "/api/v1/apply", configDocs, nil)
	for _, box := range boxes {
		wait.Until(t, "the config reaches the device", func() bool {
			m := box.end.Manifest()
			return m != nil && len(m.Manifest.Items["config/motd"].Body) > 0
		})
	}
	b.must("POST", "/api/v1/devices/box-0/retire", "", nil)
	for _, r := range p.cores {
		wait.Until(t, "the retired device is offline at "+r.name, func() bool { return !r.device("box-0").Online })
	}
	wait.Until(t, "the retired device is turned away", func() bool { _, connected := boxes[0].end.Parent(); return !connected })
	if got := strings.Join(a.coreEvents("box-0"), ","); strings.Count(got, "device.retired") != 1 || !strings.Contains(got, "device.retired admin") || strings.Count(got, "device.enrolled") != 1 || strings.Count(got, "device.online") != 1 {
		t.Errorf("events of box-0: %s", got)
	}

	// A third that is alone, or has a name that is taken, is refused.
	for what, args := range map[string][]string{"alone": nil, "a name that is taken": {"--replica", "a", "--mqtt-broker", p.broker}, "without a broker": {"--replica", "c"}, "no name": {"--replica", "C/c", "--mqtt-broker", p.broker}} {
		if _, err := cored(t, append([]string{"run", "--data", p.dir, "--listen-https", "127.0.0.1:0"}, args...)...); api.CodeOf(err) != api.Unavailable && api.CodeOf(err) != api.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := cored(t, "secrets", "rotate", "--data", p.dir); api.CodeOf(err) != api.Conflict {
		t.Errorf("a rotation while two run: %v", err)
	}

	// a stops: b has everything within a few seconds.
	began := time.Now()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
	for i, box := range boxes[1:] {
		box.use(1000, 2000, 1000)
		name := "box-" + strconv.Itoa(i+1)
		wait.Until(t, name+" is counted at b", func() bool { millis, n := b.usedNow(name); return millis == 2000 && n == 2 })
	}
	t.Logf("after a stopped, b counted for all within %s", time.Since(began).Round(time.Millisecond))
}

// Replicas whose database is files are refused.
func TestReplicasNeedADatabase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "core")
	r := start(t, dir)
	if _, err := cored(t, "run", "--data", dir, "--replica", "b", "--mqtt-broker", "127.0.0.1:1"); api.CodeOf(err) != api.Unavailable {
		t.Errorf("beside a core that is alone: %v", err)
	}
	r.stop()
	if _, err := cored(t, "run", "--data", dir, "--replica", "b", "--mqtt-broker", "127.0.0.1:1"); api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), "migrate-store") {
		t.Errorf("on files: %v", err)
	}
}

// rounds of TestReplicasUnderKills; `make replicas ROUNDS=…` has more.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("TRIBUTARY_REPLICAS")); err == nil {
		return n
	}
	return 0
}

// soon is within what time the other core has to serve all devices after one was killed: its
// leases live 5 s, then devices are greeted. A loaded machine takes longer.
const soon = 45 * time.Second

// Either core is killed at a random moment while devices record all the time: the other counts
// for all within seconds, streams and writes go on, and in the end every record is counted once.
func TestReplicasUnderKills(t *testing.T) {
	if rounds() == 0 {
		t.Skip("takes minutes: make replicas")
	}
	p := twoCores(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TRIBUTARY_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var alive atomic.Int32 // which core streams and people go to
	const devices = 8
	var boxes [devices]*box
	var made [devices]atomic.Uint64
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i := range boxes {
		b := attach(t, p.cores[i%2].join("box-"+strconv.Itoa(i)), p.broker)
		b.serves(func() string { return p.cores[alive.Load()].address })
		boxes[i] = b
		writers.Go(func() {
			tick := time.NewTicker(25 * time.Millisecond)
			defer tick.Stop()
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				b.use(n*1000, n*1000+1000, uint64(n%7+1))
				made[i].Add(uint64(n%7 + 1))
			}
		})
	}
	acked := func(what string) time.Duration {
		began := time.Now()
		for i, b := range boxes {
			target := b.last.Load()
			wait.Until(t, fmt.Sprintf("%s: what box-%d had recorded is acknowledged", what, i), func() bool { return b.end.Acked() >= target })
		}
		return time.Since(began)
	}
	acked("at first")
	var longest time.Duration
	for round := range rounds() {
		victim := rng.IntN(2)
		v, o := p.cores[victim], p.cores[1-victim]
		alive.Store(int32(1 - victim))
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond) // the random moment: this is what is tested
		v.kill()
		took := acked(fmt.Sprintf("round %d, %s killed", round, v.name))
		longest = max(longest, took)
		if took > soon {
			t.Errorf("round %d: %s served all devices %s after %s was killed", round, o.name, took, v.name)
		}
		o.must("POST", "/api/v1/apply", siteDoc(round), nil)
		name := "box-" + strconv.Itoa(rng.IntN(devices))
		wait.Seen(t, name+" answers a command", func() (any, bool) {
			out, err := o.exec(name, "hello")
			return err, out == "hello"
		})
		v.start()
		v.must("GET", "/api/v1/sites/site-"+strconv.Itoa(round), "", nil)
		acked(fmt.Sprintf("round %d, %s is back", round, v.name))
	}
	close(stop)
	writers.Wait()
	acked("at last")
	for i := range boxes {
		for _, r := range p.cores {
			millis, n := r.usedNow("box-" + strconv.Itoa(i))
			if millis != made[i].Load() || n == 0 {
				t.Errorf("box-%d: %s counts %d ms in %d intervals, it used %d", i, r.name, millis, n, made[i].Load())
			}
		}
	}
	t.Logf("%d kills; the other core served all %d devices after %s at most", rounds(), devices, longest.Round(time.Millisecond))
}
