package rescue

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/unlock"
	"tributary.dev/tributary/tests/mutation"
)

// world is a core with one unlock key, and a box of it.
type world struct {
	key    *ecdh.PrivateKey
	former []*ecdh.PrivateKey
	now    time.Time
	notes  []api.Event
	fail   error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &world{key: k, now: time.Unix(1_800_000_000, 0)}
}

func (w *world) desk() *Desk {
	return New(Config{
		Keys: func() ([]*ecdh.PrivateKey, error) { return append([]*ecdh.PrivateKey{w.key}, w.former...), nil }, Event: "device.unlock", Now: func() time.Time { return w.now },
		Answered: func(_ context.Context, _ api.DeviceID, id string) (bool, error) {
			for _, e := range w.notes {
				if e.Subject == id {
					return true, nil
				}
			}
			return false, nil
		},
		Note: func(_ context.Context, _ api.DeviceID, _ string, e api.Event) error {
			if w.fail == nil {
				w.notes = append(w.notes, e)
			}
			return w.fail
		},
	})
}

type limits struct{ unlock.Limit }

func (l *limits) Load() (unlock.Limit, error) { return l.Limit, nil }
func (l *limits) Save(now unlock.Limit) error { l.Limit = now; return nil }

func (w *world) lock(device byte) *unlock.Lock {
	return unlock.NewLock(unlock.LockConfig{Owner: w.key.PublicKey(), Device: api.DeviceID{device}, Proven: true, Limits: &limits{}, Now: func() time.Duration { return 0 }, Rand: rand.Reader})
}

func challenge(t *testing.T, l *unlock.Lock) string {
	t.Helper()
	c, err := l.Ask()
	if err != nil {
		t.Fatal(err)
	}
	return c.String()
}

func TestAnswerOpens(t *testing.T) {
	w := newWorld(t)
	l := w.lock(1)
	a, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, l), "ann")
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Try(a.Text)
	if err != nil || c.ID() != a.Challenge || !a.Proven {
		t.Errorf("%+v %v", a, err)
	}
	if len(w.notes) != 1 || w.notes[0].Actor != "ann" || w.notes[0].Subject != a.Challenge || w.notes[0].Name != "device.unlock" {
		t.Errorf("%+v", w.notes)
	}
}

// TestNotedFirst: an answer that cannot be noted is not given.
func TestNotedFirst(t *testing.T) {
	w := newWorld(t)
	w.fail = errors.New("the disk is full")
	if a, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, w.lock(1)), "ann"); err == nil || a.Text != "" {
		t.Errorf("%+v %v", a, err)
	}
}

// refusals are what the core must not answer, each with the check that keeps it from that.
var refusals = map[string]struct {
	check string
	code  api.Code
	try   func(t *testing.T, w *world) error
}{
	"another device's challenge": {"device", api.Conflict, func(t *testing.T, w *world) error {
		_, err := w.desk().Answer(t.Context(), api.DeviceID{2}, "box", challenge(t, w.lock(1)), "ann")
		return err
	}},
	"the same challenge twice, across a restart": {"once", api.Conflict, func(t *testing.T, w *world) error {
		text := challenge(t, w.lock(1))
		if _, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", text, "ann"); err != nil {
			t.Fatal(err)
		}
		_, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", text, "ben")
		return err
	}},
	"the seventh in an hour": {"limit", api.Unavailable, func(t *testing.T, w *world) (err error) {
		d := w.desk()
		for range PerDevice + 1 {
			w.now = w.now.Add(time.Minute)
			_, err = d.Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, w.lock(1)), "ann")
		}
		return err
	}},
}

func TestRefusals(t *testing.T) {
	for name, r := range refusals {
		t.Run(name, func(t *testing.T) {
			if err := r.try(t, newWorld(t)); err == nil {
				t.Error("it is answered")
			} else if api.CodeOf(err) != r.code {
				t.Error(err)
			}
		})
	}
}

// TestChecks: in a build without its check, each attempt is answered.
func TestChecks(t *testing.T) {
	checks, against := mutation.Marked(t, "", "rescue.go"), map[string]string{}
	for name, r := range refusals {
		against[name] = r.check
	}
	mutation.Prove(t, mutation.Each(t, checks, "TestRefusals", "it is answered", against)...)
}

// TestAnswers: what is no challenge of this owner's is not answered; after an hour as many are as before.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	d := w.desk()
	if _, err := d.Answer(t.Context(), api.DeviceID{1}, "box", "nonsense", "ann"); api.CodeOf(err) != api.Invalid {
		t.Errorf("%v", err)
	}
	if _, err := d.Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, newWorld(t).lock(1)), "ann"); api.CodeOf(err) != api.Conflict {
		t.Errorf("a challenge to another owner: %v", err)
	}
	for range PerDevice {
		if _, err := d.Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, w.lock(1)), "ann"); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(Window)
	if _, err := d.Answer(t.Context(), api.DeviceID{1}, "box", challenge(t, w.lock(1)), "ann"); err != nil {
		t.Errorf("after an hour: %v", err)
	}
	if len(d.given) != 2 {
		t.Errorf("what was long ago is remembered: %v", d.given)
	}
}

// TestRotatedKey: a box that has not heard of the new key is answered by the old one while the core keeps it. Once the box
// has heard, who has a copy of the old key does not open it; and a challenge for a key that is given up is refused.
func TestRotatedKey(t *testing.T) {
	w := newWorld(t)
	old, before := w.key, w.lock(1)
	w.key = newWorld(t).key
	w.former = []*ecdh.PrivateKey{old}
	c, err := before.Ask()
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", c.String(), "anna")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.Try(a.Text); err != nil {
		t.Error(err)
	}

	after := w.lock(1) // it has its manifest
	if c, err = after.Ask(); err != nil {
		t.Fatal(err)
	}
	if _, err := unlock.Answer(old, c); !errors.Is(err, unlock.ErrOtherOwner) {
		t.Errorf("the old key's answer to a challenge for the new: %v", err)
	}
	forged := c
	forged.Owner = unlock.OwnerID(old.PublicKey())
	if text, err := unlock.Answer(old, forged); err != nil {
		t.Fatal(err)
	} else if _, err := after.Try(text); !errors.Is(err, unlock.ErrWrong) {
		t.Errorf("the old key opens: %v", err)
	}
	if a, err = w.desk().Answer(t.Context(), api.DeviceID{1}, "box", c.String(), "anna"); err != nil {
		t.Fatal(err)
	} else if _, err := after.Try(a.Text); err != nil {
		t.Error(err)
	}

	w.former = nil // lost
	if c, err = before.Ask(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.desk().Answer(t.Context(), api.DeviceID{1}, "box", c.String(), "anna"); api.CodeOf(err) != api.Conflict {
		t.Errorf("a challenge for a lost key: %v", err)
	}
}

// TestRotatedKeyCounts: in a build that takes any answer, the old key opens.
func TestRotatedKeyCounts(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "owner", Test: "^TestRotatedKey$", File: "../../identity/unlock/lock.go",
		From: "if subtle.ConstantTimeCompare(given, want) != 1 {", To: "if subtle.ConstantTimeCompare(given, want) != 1 && !GONE {"})
}
