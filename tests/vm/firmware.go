package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"time"
)

// prepareVars gives the machine its own store of UEFI variables.
func (m *Machine) prepareVars() error {
	p, ok := platforms[m.Arch]
	if !ok {
		return fmt.Errorf("no machine of architecture %q", m.Arch)
	}
	m.Vars = cmp.Or(m.Vars, m.path("vars.fd"))
	if _, err := os.Stat(m.Vars); err == nil {
		return nil
	}
	empty, err := os.ReadFile(p.vars)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("needs the firmware %s: run tests/install-deps vm", p.vars)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(m.Vars, empty, 0o644)
}

// startTPM starts a software TPM 2.0, which ends with the machine.
func (m *Machine) startTPM(ctx context.Context) error {
	if _, err := exec.LookPath("swtpm"); err != nil {
		return errors.New("needs swtpm: run tests/install-deps vm")
	}
	if err := os.MkdirAll(m.TPM, 0o700); err != nil {
		return err
	}
	sock := m.path("tpm.sock")
	var err error
	m.tpm, err = StartProcess(exec.Command("swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", "dir="+m.TPM, "--ctrl", "type=unixio,path="+sock))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(sock); err == nil {
			return nil
		}
		select {
		case <-m.tpm.done:
			return fmt.Errorf("swtpm ended: %s", m.tpm.Message())
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not listen: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
