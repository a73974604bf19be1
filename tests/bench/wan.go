package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/oci"
	"tributary.dev/tributary/tests/artifacts"
	"tributary.dev/tributary/tests/images/debimage"
)

// wanRelay names the variable that turns this program into the bench's relay; it
// holds the relay's configuration.
const wanRelay = "TRIBUTARY_BENCH_WAN_RELAY"

// What the bench moves: an app of 52 MB in five layers, over an uplink of 25 MB/s.
const (
	wanBytes    = 52 << 20
	wanLayers   = 5
	wanChildren = 50
	wanRate     = 25 << 20
)

// runWanRelay is the relay's process. It ends by SIGKILL.
func runWanRelay(config string) error {
	c, err := artifacts.DecodeRelayConfig(config)
	if err != nil {
		return err
	}
	r, err := artifacts.StartRelay(c, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	return r.Wait()
}

// benchWan brings an app to 50 cold children at once over one relay whose process is
// killed half-way and started again, and compares the TCP payload bytes on the
// relay's uplink, both ways, with the unique bytes of the app's layers. TLS, HTTP,
// the manifest and what the kill lost are all in it.
func benchWan(ctx context.Context) (figures []Figure, err error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "tributary-wan-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	core, err := artifacts.NewCore(filepath.Join(dir, "core"), nil)
	if err != nil {
		return nil, err
	}
	defer core.Close()
	img, err := debimage.Random("amd64", wanBytes, wanLayers, 1)
	if err != nil {
		return nil, err
	}
	ref, err := core.Push(ctx, "default/big", img)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	var unique int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return nil, err
		}
		unique += n
	}
	link, err := artifacts.NewLink(core.Addr, wanRate)
	if err != nil {
		return nil, err
	}
	defer link.Close()

	relayDir := filepath.Join(dir, "relay")
	if _, err := core.Device(filepath.Join(relayDir, "id")); err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	process := wanProcess{config: artifacts.RelayConfig{Dir: relayDir, Listen: addr, Parent: link.Addr, Peer: "core", Refs: []oci.Ref{ref}}}
	began := time.Now()
	if err := process.start(ctx); err != nil {
		return nil, err
	}
	defer process.kill()

	done := make(chan error, wanChildren)
	var wg sync.WaitGroup
	for i := range wanChildren {
		id, err := core.Device(filepath.Join(dir, fmt.Sprint("child-", i)))
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			parent := artifacts.NewParent(id, addr, "")
			defer parent.Close()
			n, err := artifacts.Child{Parent: parent}.Pull(ctx, ref)
			if err == nil && n < unique {
				err = fmt.Errorf("a child has %d bytes of %d", n, unique)
			}
			done <- err
		})
	}
	defer wg.Wait()
	defer cancel()
	if err := halfWay(ctx, link, unique/2); err != nil {
		return nil, err
	}
	process.kill()
	if err := process.start(ctx); err != nil {
		return nil, err
	}
	for range wanChildren {
		if err := <-done; err != nil {
			return nil, err
		}
	}
	took := time.Since(began)
	up, down := link.Bytes()
	f := atMost("wan", float64(up+down)/float64(unique), "ratio", 1.05, 1.05)
	f.Note = fmt.Sprintf("%d bytes over the uplink, %d unique, %d children, one kill", up+down, unique, wanChildren)
	seconds := plain("wan.seconds", took.Seconds(), "s")
	seconds.Note = "all children complete, over TLS, uplink of 25 MB/s"
	return []Figure{f, seconds}, nil
}

// freeAddress finds a port that both lives of the relay listen on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// halfWay waits until the link has carried so many bytes from the parent.
func halfWay(ctx context.Context, link *artifacts.Link, bytes int64) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, down := link.Bytes(); down >= bytes {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("the uplink carried less than half of the app")
		}
	}
}

// wanProcess is the relay as a process of its own.
type wanProcess struct {
	config artifacts.RelayConfig
	cmd    *exec.Cmd
}

func (p *wanProcess) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.cmd = exec.CommandContext(ctx, self)
	p.cmd.Env = append(os.Environ(), wanRelay+"="+p.config.Encode())
	p.cmd.Stderr = os.Stderr
	return p.cmd.Start()
}

// kill is SIGKILL: nothing is flushed, nobody is told.
func (p *wanProcess) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	p.cmd = nil
}
