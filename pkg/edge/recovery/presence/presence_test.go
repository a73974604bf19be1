package presence

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tributary.dev/tributary/tests/wait"
)

func TestAsk(t *testing.T) {
	dir := t.TempDir()
	began := time.Now()
	now := func() time.Duration { return time.Since(began) }
	if Pressed(dir, now()) {
		t.Error("a press that nobody asked for is an answer: the button switches nothing off")
	}
	ended := make(chan error, 1)
	go func() { ended <- Ask(t.Context(), dir, time.Hour, now) }()
	wait.Until(t, "somebody asks", func() bool { return Pressed(dir, now()) })
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if Pressed(dir, now()) {
		t.Error("a second press is an answer too")
	}
	if err := Ask(t.Context(), dir, 10*time.Millisecond, now); !errors.Is(err, ErrNobody) {
		t.Errorf("without a press: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Ask(ctx, dir, time.Minute, now); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("%v is left", list)
	}
	// A question whose time is over, left by a console that was killed.
	if err := os.WriteFile(filepath.Join(dir, wanted), []byte(`{"until":5}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if Pressed(dir, 5) {
		t.Error("a press after the time is an answer")
	}
}

func TestRules(t *testing.T) {
	path := filepath.Join(t.TempDir(), "profile.json")
	for text, want := range map[string]time.Duration{
		`{}`: 0, `{"physicalPresence":{"proof":["button","usb-key"],"window":300}}`: 0,
		`{"physicalPresence":{"proof":["usb-key"],"shell":true,"window":300}}`: 0,
		`{"physicalPresence":{"proof":["button"],"shell":true,"window":30}}`:   30 * time.Second,
		`{"physicalPresence":{"proof":["button"],"shell":true}}`:               10 * time.Second,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRules(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := r.ByButton(); got != want || ok != (want > 0) {
			t.Errorf("%s: %v %v", text, got, ok)
		}
	}
	if r, err := ReadRules(path + ".none"); err != nil || r.Shell {
		t.Errorf("%+v %v", r, err)
	}
}
