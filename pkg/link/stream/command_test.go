package stream

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/url"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keyRing is an identity.Keys without certificates.
type keyRing map[string]crypto.PublicKey

func (k keyRing) SignerKey(kid []byte) (crypto.PublicKey, bool) {
	p, ok := k[string(kid)]
	return p, ok
}

func keysOf(signers ...*ecdsa.PrivateKey) keyRing {
	ring := keyRing{}
	for _, s := range signers {
		ring[string(identity.KID(&s.PublicKey))] = s.Public()
	}
	return ring
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func goodCommand(self api.DeviceID) Command {
	return Command{Version: 1, Device: self, Session: SessionID{1}, Issued: noon.Unix(), Expires: noon.Add(time.Minute).Unix(),
		Verb: Exec, App: "shop", Service: "web", Argv: []string{"ls", "-l"}, Actor: "ann"}
}

func TestVerifyTakesOnlyWhatIsMeantForHereAndNow(t *testing.T) {
	signer, self := newKey(t), api.DeviceID{9}
	for _, c := range []struct {
		name string
		edit func(*Command)
		now  time.Time
		ok   bool
	}{
		{"good", func(*Command) {}, noon, true},
		{"within the skew", func(*Command) {}, noon.Add(-time.Minute), true},
		{"other device", func(c *Command) { c.Device = api.DeviceID{8} }, noon, false},
		{"expired", func(*Command) {}, noon.Add(2 * time.Minute), false},
		{"from the future", func(*Command) {}, noon.Add(-time.Hour), false},
		{"valid for a day", func(c *Command) { c.Expires += 86400 }, noon, false},
		{"ends before it starts", func(c *Command) { c.Expires = c.Issued - 1 }, noon.Add(-time.Minute), false},
		{"unknown version", func(c *Command) { c.Version = 2 }, noon, false},
		{"unknown verb", func(c *Command) { c.Verb = "reboot" }, noon, false},
		{"exec of nothing", func(c *Command) { c.Argv = nil }, noon, false},
		{"no app", func(c *Command) { c.App = "" }, noon, false},
	} {
		cmd := goodCommand(self)
		c.edit(&cmd)
		raw, err := cmd.Sign(signer)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify(raw, keysOf(newKey(t), signer), self, c.now, &Replay{})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.ok && !reflect.DeepEqual(*got, cmd) {
			t.Errorf("%s: got %+v, want %+v", c.name, *got, cmd)
		}
	}
}

func TestVerifyRefusesForgeryAndReplay(t *testing.T) {
	signer, self := newKey(t), api.DeviceID{9}
	cmd := goodCommand(self)
	raw, err := cmd.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	keys := keysOf(signer)
	if _, err := Verify(raw, keysOf(newKey(t)), self, noon, &Replay{}); api.CodeOf(err) != api.Forbidden {
		t.Errorf("another signer: %v", err)
	}
	seen := &Replay{}
	if _, err := Verify(raw, keys, self, noon, seen); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(raw, keys, self, noon, seen); api.CodeOf(err) != api.Forbidden {
		t.Errorf("replayed: %v", err)
	}
	rapid.Check(t, func(t *rapid.T) {
		bad := append([]byte(nil), raw...)
		i := rapid.IntRange(0, len(bad)-1).Draw(t, "at")
		bad[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if got, err := Verify(bad, keys, self, noon, &Replay{}); err == nil && !reflect.DeepEqual(*got, cmd) {
			t.Fatalf("byte %d changed and it passed as %+v", i, got)
		}
	})
}

func TestReplayForgetsOnlyTheExpired(t *testing.T) {
	r := &Replay{}
	for i := range maxReplay {
		if !r.admit(SessionID{byte(i), byte(i >> 8)}, noon.Add(time.Minute), noon) {
			t.Fatal("refused below the bound")
		}
	}
	if r.admit(SessionID{0, 0, 1}, noon.Add(time.Minute), noon) {
		t.Error("grew past the bound")
	}
	later := noon.Add(2 * time.Minute)
	if !r.admit(SessionID{0, 0, 1}, later.Add(time.Minute), later) || len(r.seen) != 1 {
		t.Errorf("kept %d expired sessions", len(r.seen))
	}
}

func TestQueryComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Command{Verb: Exec, App: "shop",
			Service: rapid.StringMatching(`[a-z]{0,8}`).Draw(t, "service"),
			Argv:    rapid.SliceOfN(rapid.String(), 1, 5).Draw(t, "argv"),
			TTY:     rapid.Bool().Draw(t, "tty"), Follow: rapid.Bool().Draw(t, "follow"),
			Tail: rapid.Int().Draw(t, "tail"), Port: rapid.Uint16().Draw(t, "port"),
			Size: Size{rapid.Uint16().Draw(t, "columns"), rapid.Uint16().Draw(t, "rows")}}
		q, err := url.ParseQuery(c.Query().Encode())
		if err != nil {
			t.Fatal(err)
		}
		got, err := FromQuery(Exec, q)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("got %+v, %v; want %+v", got, err, c)
		}
	})
	for _, bad := range []string{"app=a&argv=x&nonsense=1", "argv=x", "app=a", "app=a&argv=x&port=70000", "app=a&argv=x&tty=maybe"} {
		q, _ := url.ParseQuery(bad)
		if _, err := FromQuery(Exec, q); api.CodeOf(err) != api.Invalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	good, err := encMode.Marshal(goodCommand(api.DeviceID{9}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0xa1, 0x01, 0x01})
	f.Add([]byte{0xa1, 0x0a, 0x9a, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommand(b)
		if err != nil {
			return
		}
		again, err := encMode.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		c2, err := decodeCommand(again)
		if err != nil || c2.Session != c.Session || c2.Verb != c.Verb {
			t.Fatalf("does not come back: %v", err)
		}
		_ = c.Check()
	})
}

func FuzzVerify(f *testing.F) {
	signer := newKey(f)
	cmd := goodCommand(api.DeviceID{9})
	raw, err := cmd.Sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0xd2, 0x84, 0x43, 0xa1, 0x01, 0x26, 0xa0, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Verify(b, keysOf(signer), api.DeviceID{9}, noon, &Replay{})
		if err == nil && !reflect.DeepEqual(*got, cmd) {
			t.Fatalf("forged: %+v", got)
		}
	})
}
