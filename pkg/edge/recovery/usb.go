package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/recovery/usb"
)

// maxUpdate bounds an update's file.
const maxUpdate = 2 << 30

// takeUpdate brings an update from a USB partition, or a folder, to where the updater finds
// it. The updater checks who vouches for it, as for any other.
func (a *Appliance) takeUpdate(ctx context.Context, from, file string, say func(string)) error {
	dir, done, err := a.medium(from, true)
	if err != nil {
		return err
	}
	defer done()
	if file == "" {
		if file, err = onlyBundle(dir); err != nil {
			return err
		}
	}
	// A stick may hold links and pipes too: what they lead to is none of a stranger's business, and may never answer.
	f, err := os.OpenFile(filepath.Join(dir, filepath.Base(file)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("the file %s: %s", clean(file), reason(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // check: a file
		return fmt.Errorf("the file %s is no plain file", clean(file))
	}
	home := usb.In(a.path(a.Data))
	if err := home.Make(); err != nil {
		return fmt.Errorf("there is no room for it while DATA is closed: %w", err)
	}
	if err := roomFor(string(home), info.Size()); err != nil {
		return err
	}
	say(fmt.Sprintf("Reading %s, %s...", info.Name(), size(info.Size())))
	if err := home.Offer(ctx, io.LimitReader(f, maxUpdate), usb.Wish{By: "a person at the console", Time: a.Now().UTC()}); err != nil {
		return fmt.Errorf("%s: %w", info.Name(), err)
	}
	say("The updater has it. It installs it within minutes if those who sign releases vouch for it, tries it, and goes back if it is no good: see the page Slots.")
	if a.askAgent(ctx, "/status", new(Agent)) != nil {
		say("The agent does not run now; it is taken up when it does.")
	}
	return nil
}

// home is the one folder of this box that a person at the console, who need not have said who
// they are, writes to and reads from.
const home = "/data/support"

// medium is the folder of a USB partition, mounted until done is called, or one below home.
func (a *Appliance) medium(from string, readOnly bool) (dir string, done func(), err error) {
	from = filepath.Clean(from)
	if from == home || strings.HasPrefix(from, home+"/") {
		return a.path(from), func() {}, nil
	}
	var nodes []string
	for _, s := range a.sticks() {
		nodes = append(nodes, s.Node)
	}
	if !slices.Contains(nodes, from) { // check: a stick
		here := "none is plugged in"
		if len(nodes) > 0 {
			here = "here: " + strings.Join(nodes, ", ")
		}
		return "", nil, fmt.Errorf("%s is no USB partition (%s), and no folder below %s", clean(from), here, home)
	}
	dir = a.path(a.Run, "stick")
	done, err = mountStick(from, dir, readOnly)
	return dir, done, err
}

func onlyBundle(dir string) (string, error) {
	list, err := filepath.Glob(filepath.Join(dir, "*.tbu"))
	if err != nil {
		return "", err
	}
	switch len(list) {
	case 0:
		return "", errors.New("there is no update (*.tbu) on it")
	case 1:
		return list[0], nil
	}
	var names []string
	for _, path := range list {
		names = append(names, clean(filepath.Base(path)))
	}
	return "", fmt.Errorf("there are several updates on it; name one of %s", strings.Join(names, ", "))
}

func roomFor(dir string, bytes int64) error {
	if bytes > maxUpdate {
		return fmt.Errorf("an update of %s: at most %s are taken", size(bytes), size(maxUpdate))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < bytes+64<<20 {
		return fmt.Errorf("it needs %s, and %s are free", size(bytes+64<<20), size(free))
	}
	return nil
}
