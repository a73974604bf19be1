package tpm

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
)

// box is a software TPM with a state of its own. It is switched off and on again by boot.
type box struct {
	t   *testing.T
	dir string
	off func()
	tpm *TPM // as it was handed out last
}

func newBox(t *testing.T) *box {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("needs swtpm: run tests/install-deps vm")
	}
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is at most 107 bytes long
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, dir: dir}
	t.Cleanup(func() {
		b.shut()
		os.RemoveAll(dir)
	})
	return b
}

func (b *box) shut() {
	if b.off != nil {
		b.off()
		b.off = nil
	}
}

// boot starts the box and measures Secure Boot's state and the kernel's image.
func (b *box) boot(secureBoot, kernel string) *TPM {
	b.t.Helper()
	t := b.start()
	if err := errors.Join(t.Extend(PCRSecureBoot, []byte(secureBoot)), t.Extend(PCRKernel, []byte(kernel))); err != nil {
		b.t.Fatal(err)
	}
	return t
}

// start switches the box on, with a fresh set of PCRs, and hands its TPM out.
func (b *box) start() *TPM {
	b.t.Helper()
	b.shut()
	sock := filepath.Join(b.dir, "sock")
	_ = os.Remove(sock)
	var said bytes.Buffer
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+b.dir, "--flags", "not-need-init,startup-clear",
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
	b.tpm = New(framed{conn})
	return b.tpm
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
