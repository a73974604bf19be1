package timesync

import (
	"encoding/binary"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/tests/wait"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestDecide(t *testing.T) {
	ok := func(off time.Duration) Answer { return Answer{"s", off, 10 * time.Millisecond} }
	year := 365 * 24 * time.Hour
	for _, c := range []struct {
		name    string
		now     time.Time
		floor   time.Time
		answers []Answer
		by      time.Duration
		trusted bool
	}{
		{"nobody", noon, noon.Add(-time.Hour), nil, 0, false},
		{"nobody, and the clock stands in the past", noon.Add(-10 * year), noon, nil, 10 * year, false},
		{"one", noon, noon.Add(-time.Hour), []Answer{ok(time.Minute)}, time.Minute, true},
		{"ten years behind", noon.Add(-10 * year), noon.Add(-year), []Answer{ok(10 * year)}, 10 * year, true},
		{"ten years ahead, at boot", noon.Add(10 * year), noon.Add(-year), []Answer{ok(-10 * year)}, -10 * year, true},
		{"a server before what is certain", noon, noon.Add(-time.Hour), []Answer{ok(-2 * time.Hour)}, 0, false},
		{"a server in another age", noon, noon, []Answer{ok(30 * year)}, 0, false},
		{"one of two lies", noon, noon, []Answer{ok(time.Second), ok(year)}, 0, false},
		{"one of three lies", noon, noon, []Answer{ok(time.Second), ok(year), ok(time.Second + time.Millisecond)}, time.Second, true},
		{"too vague", noon, noon, []Answer{{"s", time.Hour, time.Minute}}, 0, false},
		{"a little", noon, noon.Add(-time.Hour), []Answer{ok(20 * time.Millisecond)}, 20 * time.Millisecond, true},
	} {
		v := Decide(c.now, c.floor, c.answers)
		if v.By != c.by || v.Trusted != c.trusted || v.Slew != (c.trusted && v.By.Abs() < slewBelow) {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

// Whatever servers say, the clock is not before the floor afterwards, nor twenty years
// beyond it by their word.
func TestFloorHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hours := func(name string, lo, hi int) time.Duration {
			return time.Duration(rapid.IntRange(lo, hi).Draw(t, name)) * time.Hour
		}
		now, floor := noon.Add(hours("now", -2e5, 2e5)), noon
		var list []Answer
		for range rapid.IntRange(0, 5).Draw(t, "servers") {
			list = append(list, Answer{"s", hours("offset", -4e5, 4e5), time.Duration(rapid.Int64Range(-1, int64(2*worst)).Draw(t, "error"))})
		}
		v := Decide(now, floor, list)
		after := now.Add(v.By)
		if after.Before(floor) {
			t.Fatalf("%s is before %s: %+v", after, floor, v)
		}
		if v.Trusted && after.Sub(floor) > tooFar+worst {
			t.Fatalf("%s is trusted: %+v", after, v)
		}
		if !v.Trusted && v.By != 0 && !after.Equal(floor) {
			t.Fatalf("the clock moves by an untrusted word: %+v", v)
		}
	})
}

// hand is a clock that a test sets.
type hand struct {
	mu      sync.Mutex
	off     time.Duration
	trusted bool
}

func (h *hand) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.off)
}

func (h *hand) Move(d time.Duration, _ bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.off += d
	return nil
}

func (h *hand) Trust(time.Duration) error { h.trusted = true; return nil }

// server is an SNTP server (RFC 5905 section 7.3) whose clock is off.
func server(t *testing.T, off time.Duration, stratum byte) string {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stamp := func(at time.Time) (b [8]byte) {
		binary.BigEndian.PutUint32(b[:4], uint32(at.Unix()+2208988800))
		binary.BigEndian.PutUint32(b[4:], uint32((int64(at.Nanosecond())<<32)/1e9))
		return b
	}
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := stamp(time.Now().Add(off))
			out := make([]byte, 48)
			out[0], out[1], out[3] = 4<<3|4, stratum, 0xec // version 4, server
			copy(out[16:], now[:])
			copy(out[24:], b[40:48]) // the client's word, back
			copy(out[32:], now[:])
			copy(out[40:], now[:])
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}()
	return conn.LocalAddr().String()
}

// A clock that others keep is left alone, however wrong it looks, and taken up again after them.
func TestHeld(t *testing.T) {
	good := server(t, 0, 2)
	clock, held := &hand{off: time.Hour}, true
	cfg := Config{Servers: func() []string { return []string{good} }, Floor: func() time.Time { return time.Time{} }, Held: func() bool { return held }, Clock: clock, Log: slog.New(slog.DiscardHandler)}
	if v := Round(cfg); v.By != 0 || v.Trusted || clock.off != time.Hour {
		t.Errorf("%+v, the clock is off by %s", v, clock.off)
	}
	held = false
	wait.Seen(t, "the clock is set", func() (any, bool) {
		v := Round(cfg)
		return v, v.Trusted
	})
	if clock.off.Abs() > 5*time.Minute {
		t.Errorf("the clock is off by %s", clock.off)
	}
}

// Real packets: a clock ten years off is mended at once, a server that is not in step
// itself is not believed, and a lie beyond the floor is not either.
func TestRound(t *testing.T) {
	floor := time.Now().Add(-24 * time.Hour)
	good, unsynced, past := server(t, 0, 2), server(t, 0, 16), server(t, -48*time.Hour, 2)
	for _, c := range []struct {
		name    string
		off     time.Duration
		servers []string
		want    time.Duration // of the clock, afterwards
		trusted bool
	}{
		{"ten years behind", -10 * 365 * 24 * time.Hour, []string{good}, 0, true},
		{"ten years ahead", 10 * 365 * 24 * time.Hour, []string{good}, 0, true},
		{"not in step itself", time.Hour, []string{unsynced}, time.Hour, false},
		{"before what is certain", time.Hour, []string{past}, time.Hour, false},
		{"behind, by liars alone", -10 * 365 * 24 * time.Hour, []string{past}, -24 * time.Hour, false},
	} {
		clock := &hand{off: c.off}
		var v Verdict
		wait.Seen(t, c.name, func() (any, bool) { // an answer that a busy machine holds for seconds is no answer
			v = Round(Config{Servers: func() []string { return c.servers }, Floor: func() time.Time { return floor }, Clock: clock, Log: slog.New(slog.DiscardHandler)})
			return v, v.Trusted == c.trusted
		})
		if clock.trusted != c.trusted || (clock.off-c.want).Abs() > 5*time.Minute {
			t.Errorf("%s: %+v, the clock is off by %s", c.name, v, clock.off)
		}
	}
}
