package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Mosquitto as Spec.Broker has the core's children reach a Mosquitto that stands beside
// cored, a process of its own under Debian's user of that name.
const Mosquitto = "mosquitto"

// NeedsMosquitto reports why a lab with Mosquitto cannot stand here, or nil.
func NeedsMosquitto() error {
	if _, err := exec.LookPath("mosquitto"); err != nil {
		return errors.New("needs mosquitto: run make deps")
	}
	return nil
}

// BrokerDir is the folder of a broker that stands beside the core; BrokerLog is what it
// says, each refusal included.
func (l *Lab) BrokerDir() string { return filepath.Join(l.Dir, "broker") }
func (l *Lab) BrokerLog() string { return filepath.Join(l.Dir, "broker.log") }

// coredBroker is what cored's command line says about the broker.
func (l *Lab) coredBroker() []string {
	if l.Broker == Mosquitto {
		return []string{"--mqtt-broker", "mqtts://127.0.0.1:8883"}
	}
	return []string{"--listen-mqtt", ":8883"}
}

// StartBroker starts Mosquitto, set up by cored's command the first time, and waits until
// it listens.
func (l *Lab) StartBroker(ctx context.Context) error {
	if err := os.Chmod(l.Dir, 0o711); err != nil { // Mosquitto is not root
		return err
	}
	if _, err := l.CoreCommand(ctx, filepath.Join(l.Bin, "cored"), "mosquitto-config", "--data", l.CoreDir(), "--out", l.BrokerDir(),
		"--listen", ":8883", "--names", l.coreNames()); err != nil {
		return err
	}
	var err error
	if l.broker, err = start("mosquitto", l.BrokerLog(), l.core.argv("mosquitto", "-v", "-c", filepath.Join(l.BrokerDir(), "mosquitto.conf"))); err != nil {
		return err
	}
	return Until(ctx, "mosquitto listens", 2*time.Minute, func(ctx context.Context) error {
		if !l.broker.alive() {
			return fmt.Errorf("mosquitto ended; see %s", l.BrokerLog())
		}
		conn, err := l.core.dial(ctx, "127.0.0.1:8883")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// KillBroker ends Mosquitto as a crash would.
func (l *Lab) KillBroker() { l.broker.kill() }

// Dial connects from the box to an address of its network. The address is numeric.
func (b *Box) Dial(ctx context.Context, address string) (net.Conn, error) {
	return b.ns.dial(ctx, address)
}

// dial makes a connection whose socket lives in the namespace. A thread enters it, and
// ends with its goroutine, since nobody unlocks it.
func (n *namespace) dial(ctx context.Context, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		conn, err := func() (net.Conn, error) {
			ns, err := os.Open("/run/netns/" + n.name)
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}()
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
