package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/fxamacker/cbor/v2"
	"go.etcd.io/bbolt"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/link/mqtt"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
	"tributary.dev/tributary/tests/place"
	"tributary.dev/tributary/tests/wait"
)

// box is a device's end of the link, without anything that runs apps.
type box struct {
	t    *testing.T
	id   *identity.Identity
	live *identity.Live
	end  *link.Endpoint
	last atomic.Uint64 // record that use made
}

func attach(t *testing.T, id *identity.Identity, address string) *box {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	records, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), DB: db, Now: time.Now, Rand: rand.Reader, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	live := identity.NewLive(id)
	up := mqtt.NewUplink(mqtt.UplinkConfig{Identity: live, Parents: []api.ParentRef{{Device: identity.CoreName, Address: address}},
		Backoff: mqtt.Backoff{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond}, Log: log})
	b := &box{t: t, id: id, live: live}
	b.end, err = link.NewEndpoint(link.EndpointConfig{
		RelayConfig: link.RelayConfig{Config: link.Config{Rand: randomNumber, Health: 500 * time.Millisecond, RecordDelay: 10 * time.Millisecond, Log: log}, Self: id.ID(), Cert: id.Cert[0].Raw,
			Store: link.OpenBolt(db), Spool: records, Keys: link.KeysOf(live)},
		Uplink: up,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.end.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error("the device's link ended: ", err)
		}
		records.Close()
		db.Close()
	})
	return b
}

func (b *box) report(key string, v any) {
	b.t.Helper()
	raw, err := cbor.Marshal(v)
	if err == nil {
		err = b.end.Report(key, raw)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// use records what a service used in an interval.
func (b *box) use(from, to int64, millis uint64) {
	b.t.Helper()
	raw, err := record.EncodeUsage(api.Usage{From: from, To: to, Uses: []api.ContainerUse{{App: "web", Service: "web", RunMillis: millis, CPUMicros: 2 * millis}}})
	if err == nil {
		var seq uint64
		seq, err = b.end.Append(api.RecordUsage, raw)
		b.last.Store(seq)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// coreEvents lists what the core noted of a device, with who did it.
func (r *running) coreEvents(name string) (got []string) {
	r.t.Helper()
	var list struct{ Items []server.EventEntry }
	r.must("GET", "/api/v1/events?device="+name, "", &list)
	for _, e := range list.Items {
		if e.Core && e.Name == name {
			got = append(got, e.Event.Name+" "+e.Event.Actor)
		}
	}
	return got
}

func (r *running) device(name string) (s api.DeviceStatus) {
	r.t.Helper()
	var o api.Object
	r.must("GET", "/api/v1/devices/"+name, "", &o)
	if err := json.Unmarshal(o.Status, &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *running) used(name string) (u server.UsageReport, run uint64) {
	r.t.Helper()
	r.must("GET", "/api/v1/usage?device="+name, "", &u)
	for _, t := range u.Totals {
		run += t.RunMillis
	}
	return u, run
}

func (r *running) join(name string) *identity.Identity {
	r.t.Helper()
	var minted api.Object
	r.must("POST", "/api/v1/jointokens", tokenDoc, &minted)
	var status api.JoinTokenStatus
	if err := json.Unmarshal(minted.Status, &status); err != nil {
		r.t.Fatal(err)
	}
	return r.enrol(status.Token, name)
}

const configDocs = `
apiVersion: tributary/v1
kind: Config
metadata: {name: motd}
spec: {env: {HELLO: world}}
---
apiVersion: tributary/v1
kind: Fleet
metadata: {name: field}
spec:
  selector: {matchLabels: {role: field}}
  configs: [motd]
`

// A device gets what was applied, what it reports is seen, and what it records is counted
// once, also by a core that was restored elsewhere from a backup that knew half of it.
func TestDeviceThroughTheLink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "core")
	r := startWith(t, options{data: data(dir), mqtt: place.Left()}, func(*core) {}) // left, and taken again
	id := r.join("box")
	b := attach(t, id, r.c.mqttAddress())
	b.report("version", "test")
	wait.Until(t, "the device is online", func() bool { s := r.device("box"); return s.Online && s.Tier == 1 && s.Version == "test" })

	first := r.device("box").LastSeen
	wait.Until(t, "SEEN goes on while nothing changes", func() bool {
		s := r.device("box").LastSeen
		return s != nil && first != nil && s.After(*first)
	})
	var list struct{ Items []server.EventEntry }
	r.must("POST", "/api/v1/apply", "{apiVersion: tributary/v1, kind: Tenant, metadata: {name: acme}}", nil)
	for tenant, want := range map[string]bool{"default": true, "*": true, "acme": false} {
		if r.must("GET", "/api/v1/events?tenant="+tenant, "", &list); len(list.Items) > 0 != want {
			t.Errorf("events of tenant %s: %+v", tenant, list.Items)
		}
	}

	r.must("POST", "/api/v1/apply", configDocs, nil)
	wait.Until(t, "the config reaches the device", func() bool {
		m := b.end.Manifest()
		return m != nil && len(m.Manifest.Items["config/motd"].Body) > 0
	})
	m := b.end.Manifest().Manifest
	b.report("applied", [2]uint64{m.Epoch, m.Generation})
	b.report("app/web", api.AppStatus{Name: "web", State: api.Running})
	wait.Until(t, "the fleet is current", func() bool {
		var o api.Object
		r.must("GET", "/api/v1/fleets/field", "", &o)
		return string(o.Status) == `{"devices":1,"current":1,"running":0}` // it has no apps
	})

	b.use(0, 1000, 1000)
	wait.Until(t, "the first usage is counted", func() bool { _, n := r.used("box"); return n == 1000 })
	if u, _ := r.used("box"); u.Safe != u.Acked {
		t.Errorf("safe is %d of %d though there is no backup to restore from", u.Safe, u.Acked)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup.age")
	if _, err := makeBackup(t.Context(), data(dir), file, []age.Recipient{key.Recipient()}, false); err != nil {
		t.Fatal(err)
	}
	if u, _ := r.used("box"); u.Safe == 0 || u.Safe != u.Acked {
		t.Errorf("safe is %d, acked %d after a backup", u.Safe, u.Acked)
	}
	b.use(1000, 3000, 2000)
	wait.Until(t, "the second usage is counted", func() bool { _, n := r.used("box"); return n == 3000 })
	if u, _ := r.used("box"); u.Safe >= u.Acked {
		t.Errorf("safe is %d of %d though the backup is older", u.Safe, u.Acked)
	}

	// The core burns down, with all that came after the backup.
	address := r.c.mqttAddress()
	r.stop()
	b.use(3000, 7000, 4000)
	elsewhere := filepath.Join(t.TempDir(), "core")
	if _, _, err := restoreBackup(t.Context(), data(elsewhere), "", file, []age.Identity{key}); err != nil {
		t.Fatal(err)
	}
	r2 := startWith(t, options{data: data(elsewhere), mqtt: address}, func(*core) {})
	wait.Until(t, "the restored core has the device back", func() bool { return r2.device("box").Online })
	wait.Until(t, "everything is counted", func() bool { _, n := r2.used("box"); return n == 7000 })
	wait.Until(t, "the device is under the new epoch", func() bool { return b.end.Manifest().Manifest.Epoch == r2.c.epoch })
	if u, n := r2.used("box"); n != 7000 || u.Intervals != 3 {
		t.Errorf("%+v", u)
	}

	// Retired, it is turned away, and gone from sight.
	r2.must("POST", "/api/v1/devices/box/retire", "", nil)
	wait.Until(t, "the retired device is offline", func() bool { return !r2.device("box").Online })
	wait.Until(t, "the events tell of the device's life", func() bool {
		got := r2.coreEvents("box")
		return slices.Contains(got, "device.enrolled ") && slices.Contains(got, "device.online ") && slices.Contains(got, "device.retired admin")
	})
	_, connected := b.end.Parent()
	wait.Until(t, "the retired device is turned away", func() bool { _, connected = b.end.Parent(); return !connected })
	r2.must("DELETE", "/api/v1/devices/box", "", nil)
}

// The same over a Mosquitto that stands beside the core.
func TestDeviceThroughMosquitto(t *testing.T) {
	if _, err := exec.LookPath("mosquitto"); err != nil || mqtt.FindDynsec() == "" {
		t.Skipf("needs Debian's package mosquitto (version 2): %v", err)
	}
	address := place.Left()
	dir := filepath.Join(t.TempDir(), "core")
	r := startWith(t, options{data: data(dir), broker: address}, func(c *core) { runMosquitto(t, c, address) })
	b := attach(t, r.join("box"), address)
	b.report("version", "test")
	wait.Until(t, "the device is online", func() bool { s := r.device("box"); return s.Online && s.Version == "test" })
	r.must("POST", "/api/v1/apply", configDocs, nil)
	wait.Until(t, "the config reaches the device", func() bool {
		m := b.end.Manifest()
		return m != nil && len(m.Manifest.Items["config/motd"].Body) > 0
	})
	b.use(0, 1000, 1000)
	wait.Until(t, "the usage is counted", func() bool { _, n := r.used("box"); return n == 1000 })
	r.must("POST", "/api/v1/devices/box/retire", "", nil)
	wait.Until(t, "the retired device is turned away", func() bool { _, connected := b.end.Parent(); return !connected })
}

// runMosquitto has the command set a broker up, twice, and starts it.
func runMosquitto(t *testing.T, c *core, address string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "broker")
	var said [2]string
	for i := range said {
		var out bytes.Buffer
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{"mosquitto-config", "--data", string(c.o.data), "--out", dir, "--listen", address, "--names", "127.0.0.1", "--user", "root"})
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		said[i] = out.String()
	}
	if !strings.Contains(said[0], "(new") || !strings.Contains(said[1], "(kept)") {
		t.Errorf("it said %q", said)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f.Name(), info.Mode(), err)
		}
	}
	cmd := exec.Command("mosquitto", "-c", filepath.Join(dir, mqtt.MosquittoConf))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// What a device sends and nobody can read is an alarm in that device's health, and an event.
func TestAlarmsAreTheDevices(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "core"))
	id := r.join("liar")
	conf := id.ClientTLS(identity.CoreName)
	device := paho.NewClient(paho.NewClientOptions().AddBroker("tls://" + r.c.mqttAddress()).SetClientID(id.ID().String()).SetTLSConfig(conf).SetAutoReconnect(false))
	if token := device.Connect(); !token.WaitTimeout(wait.Limit) || token.Error() != nil {
		t.Fatal("no session: ", token.Error())
	}
	defer device.Disconnect(0)
	if token := device.Subscribe("d/"+id.ID().String(), 0, func(paho.Client, paho.Message) {}); !token.WaitTimeout(wait.Limit) || token.Error() != nil {
		t.Fatal("no subscription: ", token.Error())
	}
	wait.Until(t, "the alarm is in the device's health", func() bool {
		device.Publish("u/"+id.ID().String(), 0, false, "nonsense").WaitTimeout(wait.Limit)
		return slices.ContainsFunc(r.device("liar").Health, func(w api.Warning) bool {
			return w.Name == "bad-frame" && w.Severity == api.Degraded && w.Since > 0 && w.Remedy != ""
		})
	})
	// Who watches the events gets those that were, then those that come.
	req, err := http.NewRequestWithContext(t.Context(), "GET", r.url+"/api/v1/events?watch=true&device=liar", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.http.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	until := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("the watch ended before %q: %v", text, lines.Err())
	}
	until("device.enrolled")
	until("event: synced")
	r.must("POST", "/api/v1/devices/liar/retire", "", nil)
	until("device.retired")
	wait.Until(t, "the events tell of it", func() bool { return slices.Contains(r.coreEvents("liar"), "device.alarm ") })
}
