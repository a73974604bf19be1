package realtime

import (
	"io/fs"
	"os"
	"strings"
)

// Host is the machine that this runs on.
func Host() Machine { return host{os.DirFS("/")} }

type host struct{ fs.FS }

// Write writes a file of the kernel in one piece, as these must be.
func (host) Write(path, value string) error {
	f, err := os.OpenFile("/"+path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (h host) Boot() string {
	b, err := fs.ReadFile(h, "proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
