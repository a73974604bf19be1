package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/images/debimage"
	"tributary.dev/tributary/tests/lab"
)

// fleetCore is a cored process and a person who talks to it.
type fleetCore struct {
	cmd         *exec.Cmd
	dir         string
	https, mqtt string // addresses
	token       string
	http        *http.Client
	control     *http.Client // the socket in its folder
	ended       chan error
}

// startFleetCore starts cored, on the loopback unless told otherwise, and waits until it runs.
func startFleetCore(ctx context.Context, plan fleetPlan) (c *fleetCore, err error) {
	c = &fleetCore{dir: filepath.Join(plan.dir, "core"), ended: make(chan error, 1)}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	host := cmp.Or(plan.host, "127.0.0.1")
	argv := append(slices.Clone(plan.enter), plan.cored, "run", "--data", c.dir, "--listen-https", host+":0", "--listen-mqtt", host+":0", "--names", host, "--log-json")
	c.cmd = exec.Command(argv[0], argv[1:]...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	logs, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start cored (make build makes it): %w", err)
	}
	running := make(chan [2]string, 1)
	go func() {
		c.follow(logs, running)
		c.ended <- c.cmd.Wait()
	}()
	defer func() {
		if err != nil {
			_ = c.stop()
		}
	}()
	select {
	case at := <-running:
		c.https, c.mqtt = at[0], at[1]
	case err := <-c.ended:
		c.ended <- err
		return nil, fmt.Errorf("cored ended at once: %w", err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c, c.login()
}

// follow reads cored's log: where it listens, and what goes wrong.
func (c *fleetCore) follow(logs io.Reader, running chan<- [2]string) {
	lines := bufio.NewScanner(logs)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l struct{ Level, Msg, HTTPS, MQTT string }
		switch err := json.Unmarshal(lines.Bytes(), &l); {
		case err != nil || l.Level == "WARN" || l.Level == "ERROR" || os.Getenv("FLEET_LOG") != "":
			fmt.Fprintln(os.Stderr, "cored:", lines.Text())
		case l.Msg == "the core runs":
			running <- [2]string{l.HTTPS, l.MQTT}
		}
	}
}

func (c *fleetCore) login() error {
	token, err := os.ReadFile(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(c.dir, "ca", "root.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	c.token = strings.TrimSpace(string(token))
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 64}}
	c.control = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.dir, "control.sock"))
	}}}
	return nil
}

// stop ends cored and waits for it.
func (c *fleetCore) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-c.ended:
		return err
	case <-time.After(20 * time.Second):
		_ = c.cmd.Process.Kill()
		return fmt.Errorf("cored did not end in time: %w", <-c.ended)
	}
}

// call asks the REST API; into may be nil.
func (c *fleetCore) call(ctx context.Context, method, path, contentType string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.https+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if into == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func (c *fleetCore) apply(ctx context.Context, yaml string) error {
	return c.call(ctx, http.MethodPost, "/api/v1/apply", "application/yaml", []byte(yaml), nil)
}

// joinToken makes a token that lets boxes of a role in.
func (c *fleetCore) joinToken(ctx context.Context, role string) (string, error) {
	var o struct{ Status api.JoinTokenStatus }
	body := fmt.Sprintf(`{"apiVersion":%q,"kind":"JoinToken","metadata":{"name":%q},"spec":{"autoApprove":true,"labels":{"role":%q}}}`, api.Version, role, role)
	err := c.call(ctx, http.MethodPost, "/api/v1/jointokens", "application/json", []byte(body), &o)
	return o.Status.Token, err
}

// pushImage puts the image of the bench's app into the registry.
func (c *fleetCore) pushImage(ctx context.Context) error {
	img, err := debimage.Random("amd64", 64<<10, 1, 1)
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(c.https + "/default/" + fleetName + ":latest")
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(c.http.Transport), remote.WithAuth(&authn.Basic{Username: "bench", Password: c.token}))
}

func (c *fleetCore) fleet(ctx context.Context) (s api.FleetStatus, err error) {
	var o struct{ Status api.FleetStatus }
	err = c.call(ctx, http.MethodGet, "/api/v1/fleets/"+fleetName, "", nil, &o)
	return o.Status, err
}

// behind counts the devices of which cored does not show that they are where tree
// wants them.
func (c *fleetCore) behind(ctx context.Context, tree *fleetTree) (int, error) {
	devices := tree.devices
	for after := ""; ; {
		var page struct {
			Items []struct{ Status api.DeviceStatus }
			Next  string
		}
		query := url.Values{"selector": {"role=" + fleetField}, "limit": {"1000"}, "after": {after}}
		if err := c.call(ctx, http.MethodGet, "/api/v1/devices?"+query.Encode(), "", nil, &page); err != nil {
			return 0, err
		}
		for i := range page.Items {
			if tree.current(&page.Items[i].Status) {
				devices--
			}
		}
		if after = page.Next; after == "" {
			return devices, nil
		}
	}
}

// memory is cored's proportional set size.
func (c *fleetCore) memory() (int64, error) {
	m, err := lab.MemoryOf(c.cmd.Process.Pid)
	return m.PSS, err
}

// settle has cored collect its garbage and gives its memory once it no longer falls.
func (c *fleetCore) settle(ctx context.Context) (int64, error) {
	if err := c.profile(ctx, "heap?gc=1", io.Discard); err != nil {
		return 0, err
	}
	least, since := int64(1<<62), time.Now()
	for time.Since(since) < 2*time.Second {
		now, err := c.memory()
		if err != nil {
			return 0, err
		}
		if now < least-1<<20 {
			least, since = now, time.Now()
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return least, nil
}

// profile reads one of cored's profiles.
func (c *fleetCore) profile(ctx context.Context, what string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cored/debug/pprof/"+what, nil)
	if err != nil {
		return err
	}
	resp, err := c.control.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile %s: %s", what, resp.Status)
	}
	_, err = io.Copy(to, resp.Body)
	return err
}

// keepProfiles writes the profiles of the next seconds, cored's and this program's, into the folder that
// FLEET_PROFILE names, if it does. The caller calls what it returns, to wait for them.
func (c *fleetCore) keepProfiles(ctx context.Context, seconds int) (wait func()) {
	dir := os.Getenv("FLEET_PROFILE")
	if dir == "" {
		return func() {}
	}
	var g errgroup.Group
	for file, what := range map[string]string{"heap": "heap?gc=1", "cpu": fmt.Sprintf("profile?seconds=%d", seconds)} {
		g.Go(func() error {
			f, err := os.Create(filepath.Join(dir, file+".pprof"))
			if err != nil {
				return err
			}
			return errors.Join(c.profile(ctx, what, f), f.Close())
		})
	}
	g.Go(func() error { // the devices' side, too
		f, err := os.Create(filepath.Join(dir, "bench.pprof"))
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return pause(ctx, time.Duration(seconds)*time.Second)
	})
	return func() {
		if err := g.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, "profiles of cored:", err)
		}
	}
}

// processor is the time that a process has spent on all processors.
func processor(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms; the name may hold blanks.
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	var user, system int64
	if len(f) < 13 {
		return 0, fmt.Errorf("stat of a process: %q", b)
	}
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
