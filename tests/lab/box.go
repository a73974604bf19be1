package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Box is one device or relay: a namespace, a containerd and an edged.
type Box struct {
	Name   string
	Relay  bool
	Parent string // name of the parent box, or "core"
	// Addr is where the box's children reach it; empty for a leaf.
	Uplink *link
	// Role is the box's operator label, given by its join token: a device cannot label
	// itself.
	Role string
	// EdgedArgs are added to edged's command line.
	EdgedArgs []string
	// Alone: it is told neither a parent nor a join token.
	Alone bool
	// Program is edged, unless a test puts another one in its place: a name in the lab's
	// Bin, or a whole path.
	Program string

	lab        *Lab
	ns         *namespace
	containerd *process
	edged      *process
}

// Dir is the box's whole disk; Run is what a reboot empties.
func (b *Box) Dir() string { return filepath.Join(b.lab.Dir, b.Name) }

// Run is the box's /run: sockets and secrets, gone after a power cut.
func (b *Box) Run() string  { return filepath.Join(b.lab.RunDir, b.Name) }
func (b *Box) sock() string { return filepath.Join(b.Run(), "containerd.sock") }

// Data is edged's own folder.
func (b *Box) Data() string { return filepath.Join(b.Dir(), "edged") }

func (b *Box) writeContainerdConfig() (string, error) {
	if err := errors.Join(os.MkdirAll(b.Dir(), 0o755), os.MkdirAll(b.Run(), 0o755)); err != nil {
		return "", err
	}
	path := filepath.Join(b.Dir(), "containerd.toml")
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`, filepath.Join(b.Dir(), "containerd"), filepath.Join(b.Run(), "containerd"), b.sock(), b.sock()+".ttrpc")
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// StartContainerd starts the box's own containerd and waits until it answers.
func (b *Box) StartContainerd(ctx context.Context) error {
	conf, err := b.writeContainerdConfig()
	if err != nil {
		return err
	}
	b.containerd, err = start("containerd", filepath.Join(b.Dir(), "containerd.log"), b.ns.argv("containerd", "--config", conf))
	if err != nil {
		return err
	}
	return Until(ctx, b.Name+": containerd answers", 2*time.Minute, func(ctx context.Context) error {
		_, err := run(ctx, "ctr", "-a", b.sock(), "version")
		return err
	})
}

// StartEdged starts the box's edged; it does not wait for anything.
func (b *Box) StartEdged(context.Context) error {
	program := cmp.Or(b.Program, "edged")
	if !filepath.IsAbs(program) {
		program = filepath.Join(b.lab.Bin, program)
	}
	args := []string{program, "run", "--data", b.Data(), "--run", b.Run(), "--name", b.Name, "--containerd", b.sock(),
		"--cni-bin", filepath.Join(b.lab.Bin, "cni"), "--log-helper", filepath.Join(b.lab.Bin, "edged-log")}
	if !b.Alone {
		args = append(args, "--parent", b.Uplink.ParentAddr, "--join-token-file", b.lab.tokenFile(b.Role))
	}
	if b.Relay {
		args = append(args, "--relay", "--listen-mqtt", ":8883", "--listen-https", ":8443")
	}
	args = append(args, b.EdgedArgs...)
	var err error
	b.edged, err = start("edged", filepath.Join(b.Dir(), "edged.log"), b.ns.argv(args...))
	return err
}

// Start brings the box up.
func (b *Box) Start(ctx context.Context) error {
	if err := b.StartContainerd(ctx); err != nil {
		return err
	}
	return b.StartEdged(ctx)
}

// Prefix is what a command line starts with to run in the box's network.
func (b *Box) Prefix() []string { return b.ns.argv() }

// StopEdged asks edged to end.
func (b *Box) StopEdged() { b.edged.stop(20 * time.Second) }

// KillEdged ends edged as a crash would. KillContainerd does so to containerd.
func (b *Box) KillEdged()      { b.edged.kill() }
func (b *Box) KillContainerd() { b.containerd.kill() }

// EdgedPID is edged's process; nsenter has become it.
func (b *Box) EdgedPID() int { return b.edged.cmd.Process.Pid }

// EdgedAlive reports whether edged runs.
func (b *Box) EdgedAlive() bool { return b.edged.alive() }

// PowerCut ends everything on the box at once: edged, containerd, shims, loggers and
// the apps; and empties what a reboot empties.
func (b *Box) PowerCut() error {
	b.edged.kill()
	b.containerd.kill()
	err := killTree(b.Run() + "/")
	return errors.Join(err, killTree(b.sock()), unmountBelow(b.Run()), removeCgroups(b.Run()), os.RemoveAll(b.Run()))
}

// Command runs a program in the box's network.
func (b *Box) Command(ctx context.Context, argv ...string) (string, error) {
	full := b.ns.argv(argv...)
	return run(ctx, full[0], full[1:]...)
}

// Ctr runs ctr against the box's containerd.
func (b *Box) Ctr(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "ctr", append([]string{"-a", b.sock(), "-n", "tributary"}, args...)...)
}

// Local asks edged's local socket.
func (b *Box) Local(ctx context.Context, path string) ([]byte, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.Run(), "edged.sock"))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://edged"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, res.Status, body)
	}
	return body, err
}

// Record is one line of `edged records`.
type Record struct {
	Seq   uint64 `json:"seq"`
	Last  uint64 `json:"last"`
	Kind  string `json:"kind"`
	Usage *Usage `json:"usage"`
}

// Usage mirrors the JSON of a usage record.
type Usage struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	Uses []Use `json:"uses"`
}

// Use is one service's part of a usage record.
type Use struct {
	App     string `json:"app"`
	Service string `json:"service"`
	Totals
}

// Totals are what is billed.
type Totals struct {
	RunMillis         uint64 `json:"runMillis"`
	CPUMicros         uint64 `json:"cpuMicros"`
	MemoryByteSeconds uint64 `json:"memoryByteSeconds"`
	RxBytes           uint64 `json:"rxBytes"`
	TxBytes           uint64 `json:"txBytes"`
}

// Add sums.
func (t *Totals) Add(o Totals) {
	t.RunMillis += o.RunMillis
	t.CPUMicros += o.CPUMicros
	t.MemoryByteSeconds += o.MemoryByteSeconds
	t.RxBytes += o.RxBytes
	t.TxBytes += o.TxBytes
}

// Records reads the box's own spool, by edged's own command, from disk.
func (b *Box) Records(ctx context.Context) ([]Record, error) {
	out, err := run(ctx, filepath.Join(b.lab.Bin, "edged"), "records", "--data", b.Data(), "--run", b.Run())
	if err != nil {
		return nil, err
	}
	return ParseRecords(out)
}

// ParseRecords reads what `edged records` and edged's local API tell: one JSON object after
// the other.
func ParseRecords(text string) (records []Record, err error) {
	dec := json.NewDecoder(strings.NewReader(text))
	for dec.More() {
		var r Record
		if err := dec.Decode(&r); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		records = append(records, r)
	}
	return records, nil
}

// Recorded sums the box's usage by "app/service", and names the last record.
func (b *Box) Recorded(ctx context.Context) (map[string]Totals, uint64, error) {
	records, err := b.Records(ctx)
	if err != nil {
		return nil, 0, err
	}
	sums, last := map[string]Totals{}, uint64(0)
	for _, r := range records {
		last = max(last, r.Last, r.Seq)
		if r.Usage == nil {
			continue
		}
		for _, u := range r.Usage.Uses {
			t := sums[u.App+"/"+u.Service]
			t.Add(u.Totals)
			sums[u.App+"/"+u.Service] = t
		}
	}
	return sums, last, nil
}
