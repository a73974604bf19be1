// Package tpmtest answers: where does a test get a TPM from? From swtpm, with a state of its own
// that outlives the box being switched off and on.
package tpmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

// Box is a machine with a TPM in it.
type Box struct {
	// Dir holds the TPM's state.
	Dir string

	t   testing.TB
	off func()
}

// New makes a box, switched off. It skips the test where there is no swtpm.
func New(t testing.TB) *Box {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("needs swtpm: run tests/install-deps vm")
	}
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is at most 107 bytes long
	if err != nil {
		t.Fatal(err)
	}
	b := &Box{t: t, Dir: dir}
	t.Cleanup(func() {
		b.Off()
		os.RemoveAll(dir)
	})
	return b
}

// Off switches it off.
func (b *Box) Off() {
	if b.off != nil {
		b.off()
		b.off = nil
	}
}

// Start switches the box on, with a fresh set of PCRs.
func (b *Box) Start() transport.TPM {
	b.t.Helper()
	b.Off()
	sock := filepath.Join(b.Dir, "sock")
	_ = os.Remove(sock)
	var said bytes.Buffer
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+b.Dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+sock, "--ctrl", "type=unixio,path="+sock+".ctrl")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	var conn net.Conn
	b.off = func() {
		if conn != nil {
			_ = conn.Close()
		}
		_ = cmd.Process.Kill()
		<-ended
	}
	deadline := time.After(30 * time.Second)
	for conn == nil {
		var err error
		if conn, err = net.Dial("unix", sock); err == nil {
			break
		}
		conn = nil
		select {
		case <-ended:
			b.t.Fatalf("swtpm ended: %s", said.String())
		case <-deadline:
			b.t.Fatalf("swtpm does not listen: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return framed{conn}
}

// framed reads a whole answer from a stream.
type framed struct{ c net.Conn }

func (f framed) Send(cmd []byte) ([]byte, error) {
	if err := f.c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := f.c.Write(cmd); err != nil {
		return nil, err
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(f.c, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n < 10 || n > 4096 {
		return nil, errors.New("the answer has no sensible length")
	}
	out := append(head, make([]byte, n-10)...)
	_, err := io.ReadFull(f.c, out[10:])
	return out, err
}
