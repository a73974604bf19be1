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
	// A journal takes what was tried up to maxTried, and what opened a shell up to maxJournal, below
	// what is read: who tries for ever fills no disk, and hides nothing by it.
	maxTried   = 24 << 10
	maxJournal = 56 << 10
)

var errFull = errors.New("the console's journal is full until the core has heard of it")

// tried: it opened nothing.
func (e Entry) tried() bool { return e.What == "challenge" || e.What == "refused" }

// Note appends to the journal in the first of the folders that takes it: STATE's, or one
// that lasts until the box starts anew.
func Note(e Entry, folders ...string) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	most := int64(maxJournal)
	if e.tried() {
		most = maxTried
	}
	err = errors.New("no folder is there")
	for _, dir := range folders {
		if err = appendTo(filepath.Join(dir, journalName), append(line, '\n'), most); err == nil {
			return nil
		}
	}
	return err
}

func appendTo(path string, line []byte, most int64) (err error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size()+int64(len(line)) > most { // check: bound
		return errFull
	}
	if last := make([]byte, 1); info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
		if last[0] != '\n' { // a cut tore the line before, which is no reason to lose this one
			line = append([]byte{'\n'}, line...)
		}
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	return f.Sync()
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
