package build

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What a build takes at most, in bytes, as the profiles of this checkout do: results 0.9 GB and packages 1.0 GB of
// generic-amd64, Go's working files while containerd and the programs are linked.
const (
	outTakes   = 1 << 30
	cacheTakes = 1200 << 20
	tempTakes  = 1 << 30
)

// withRoom says what to do about a disk that is full. Programs that a build runs tell of it in words alone.
func withRoom(err error, c Config) error {
	if err == nil || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		return err
	}
	text := "make room, or name other folders by --out and TMPDIR"
	for _, f := range []struct {
		what, folder string
		takes        uint64
	}{{"results", c.Out, outTakes}, {"packages", c.Cache, cacheTakes}, {"working files", os.TempDir(), tempTakes}} {
		var s unix.Statfs_t
		if unix.Statfs(f.folder, &s) == nil {
			text += fmt.Sprintf("; %s take up to %.1f GB in %s, where %.1f GB are free", f.what, float64(f.takes)/1e9, f.folder, float64(s.Bavail*uint64(s.Bsize))/1e9)
		}
	}
	return fmt.Errorf("%w; %s", err, text)
}
