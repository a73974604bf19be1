package workloadtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Daemon is a containerd with root, state and socket of its own, without CRI.
type Daemon struct {
	Dir    string
	Socket string
	cmd    *exec.Cmd
	done   chan struct{}
}

const daemonConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
  address = %q
`

// NewDaemon writes the configuration of a daemon in dir; Start starts it.
func NewDaemon(dir string) (*Daemon, error) {
	d := &Daemon{Dir: dir, Socket: filepath.Join(dir, "containerd.sock")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf(daemonConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), d.Socket)
	return d, os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644)
}

// Start starts the daemon and waits until its socket answers.
func (d *Daemon) Start(ctx context.Context) error {
	out, err := os.OpenFile(filepath.Join(d.Dir, "daemon.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("containerd", "--config", filepath.Join(d.Dir, "config.toml"), "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	d.cmd, d.done = cmd, done
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", d.Socket); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer; see %s: %w", filepath.Join(d.Dir, "daemon.log"), ctx.Err())
		case <-done:
			return fmt.Errorf("containerd ended; see %s", filepath.Join(d.Dir, "daemon.log"))
		case <-tick.C:
		}
	}
}

// Kill ends the daemon with SIGKILL. Shims and containers live on.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}
