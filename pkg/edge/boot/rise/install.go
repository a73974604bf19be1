package rise

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot/install"
	"tributary.dev/tributary/pkg/efi"
)

const efivars = "/sys/firmware/efi/efivars"

// install is the way up of the installer, whose signed command line has tributary.install= with the sum of the block
// map that it may write: it ends in a restart, or in the rescue. On a box's own command line there is no such word.
func (r *rise) install() error {
	word, ok := r.cmdline["tributary.install"]
	if !ok {
		return nil
	}
	sum, err := hex.DecodeString(word)
	if err != nil || len(sum) != 32 {
		return fmt.Errorf("tributary.install=%.80s is no sha256", word)
	}
	t := openConsoles()
	defer t.close()
	err = install.Run(context.Background(), install.Config{
		MapSum: [32]byte(sum), Wish: r.cmdline["tributary.install.disk"], Version: r.cmdline["tributary.version"], Arch: runtime.GOARCH,
		Dev: "/dev", Sys: "/sys", Payload: "/install", Person: speaker{t}, EFI: variables(), Pet: r.dog.pet,
	})
	switch {
	case err == nil, errors.Is(err, install.ErrInstalled):
		t.printf("The box starts anew.\n")
	case errors.Is(err, install.ErrDeclined):
		t.printf("%v. The box is switched off.\n", err)
		r.end(unix.LINUX_REBOOT_CMD_POWER_OFF)
	default:
		return err
	}
	r.restart()
	return nil
}

// speaker lends the consoles to the installer.
type speaker struct{ t *terminals }

func (s speaker) Printf(format string, args ...any)          { s.t.printf(format, args...) }
func (s speaker) Key(most time.Duration) (key byte, ok bool) { return s.t.key(most) }

// variables are the firmware's, where there is one that keeps them.
func variables() efi.Variables {
	if err := os.MkdirAll(efivars, 0o755); err != nil {
		return nil
	}
	if err := unix.Mount("efivarfs", efivars, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		say("EFI variables: %v", err)
		return nil
	}
	return efi.FS(efivars)
}
