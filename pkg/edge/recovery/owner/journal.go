package owner

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Entry is what happened at a console, to be told to the core when the box is back.
type Entry struct {
	Time time.Time `json:"time"`
	// What is challenge, refused, opened or closed.
	What string `json:"what"`
	// Challenge names the challenge, as in the core's own events.
	Challenge string `json:"challenge,omitempty"`
	Where     string `json:"where,omitempty"` // the terminal
	Message   string `json:"message,omitempty"`
}

const (
	journalName = "console.jsonl"
	maxJournal  = 48 << 10 // below what is read
)

// Note appends to the journal in the first of the folders that takes it: STATE's, or one
// that lasts until the box starts anew.
func Note(e Entry, folders ...string) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = errors.New("no folder is there")
	for _, dir := range folders {
		if err = appendTo(filepath.Join(dir, journalName), append(line, '\n')); err == nil {
			return nil
		}
	}
	return err
}

func appendTo(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || info.Size() > maxJournal {
		return errors.Join(err, f.Close()) // a person who tries for ever fills no disk
	}
	_, err = f.Write(line)
	return errors.Join(err, f.Sync(), f.Close())
}

// Take hands over what the journals of the folders hold, the oldest first, and forgets what
// tell has taken. What it fails for comes again.
func Take(tell func(Entry) error, folders ...string) error {
	var errs []error
	for _, dir := range folders {
		errs = append(errs, take(filepath.Join(dir, journalName), tell))
	}
	return errors.Join(errs...)
}

func take(path string, tell func(Entry) error) error {
	taken := path + ".taken"
	// What a cut left taken comes before what was written since.
	if _, err := os.Stat(taken); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(path, taken); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
	}
	text, err := readSome(taken)
	if err != nil && len(text) == 0 {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // a cut tore it
		}
		if err := tell(e); err != nil {
			return errors.Join(err, keepRest(taken, text, lines.Bytes()))
		}
	}
	return os.Remove(taken)
}

// keepRest leaves what was not told, from this line on.
func keepRest(taken string, text, from []byte) error {
	at := bytes.Index(text, from)
	return atomicfile.Write(taken, text[max(at, 0):], 0o600)
}
