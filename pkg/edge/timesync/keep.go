package timesync

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"
)

// Config is what Keep is given.
type Config struct {
	// Servers names whom to ask now: host or host:port.
	Servers func() []string
	// Floor is what is certainly past.
	Floor func() time.Time
	// Held tells that somebody else keeps the clock now, and better: nobody is asked then, and nothing moved. May be nil.
	Held func() bool
	// Clock is the machine's; nil is the real one, which takes root.
	Clock Clock
	// Every is the time between two rounds when all is well, Retry when it is not.
	Every, Retry time.Duration
	Log          *slog.Logger
}

// Clock is a clock that can be set.
type Clock interface {
	Now() time.Time
	// Move moves it by d, slowly if slew.
	Move(d time.Duration, slew bool) error
	// Trust tells the kernel that the clock is right but for an error.
	Trust(error time.Duration) error
}

// maxServers bounds one round.
const maxServers = 4

// Keep keeps the machine's clock until ctx ends. It reads the servers and the floor, and
// writes the clock.
func Keep(ctx context.Context, cfg Config) error {
	if cfg.Clock == nil {
		cfg.Clock = system{}
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Hour
	}
	if cfg.Retry <= 0 {
		cfg.Retry = time.Minute
	}
	said := ""
	for {
		v := Round(cfg)
		if v.Why != said {
			said = v.Why
			cfg.Log.Info("the clock", "by", v.By, "trusted", v.Trusted, "why", v.Why)
		}
		pause := cfg.Retry
		if v.Trusted {
			pause = cfg.Every
		}
		t := time.NewTimer(pause + time.Duration(rand.Int64N(int64(pause)/8+1))) // a site's boxes ask one after the other
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// Round asks once, and sets the clock.
func Round(cfg Config) Verdict {
	if cfg.Held != nil && cfg.Held() {
		return Verdict{Why: "it is kept by others"}
	}
	servers := cfg.Servers()
	var answers []Answer
	for _, s := range servers[:min(len(servers), maxServers)] {
		if a, err := ask(s, cfg.Clock.Now); err == nil {
			answers = append(answers, a)
		} else {
			cfg.Log.Debug("a time server is not believed", "server", s, "err", err)
		}
	}
	v := Decide(cfg.Clock.Now(), cfg.Floor(), answers)
	if v.By != 0 {
		if err := cfg.Clock.Move(v.By, v.Slew); err != nil {
			cfg.Log.Warn("the clock cannot be set", "by", v.By, "err", err)
			return Verdict{Why: err.Error()}
		}
	}
	if v.Trusted {
		if err := cfg.Clock.Trust(v.Error); err != nil {
			cfg.Log.Debug("the kernel is not told that the clock is right", "err", err)
		}
	}
	return v
}

// patience is how long one server is waited for.
const patience = 3 * time.Second

func ask(server string, now func() time.Time) (Answer, error) {
	r, err := ntp.QueryWithOptions(server, ntp.QueryOptions{Timeout: patience, Dialer: func(_, remote string) (net.Conn, error) {
		return net.DialTimeout("udp", remote, patience)
	}, GetSystemTime: now})
	if err == nil {
		err = r.Validate() // stratum, leap, kiss of death, root distance
	}
	if err != nil {
		return Answer{}, err
	}
	return Answer{Server: server, Offset: r.ClockOffset, Error: r.RootDistance}, nil
}

// system is the machine's clock.
type system struct{}

func (system) Now() time.Time { return time.Now() }

func (system) Move(d time.Duration, slew bool) error {
	if slew {
		_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: int64(d / time.Microsecond)})
		return err
	}
	tv := unix.NsecToTimeval(time.Now().Add(d).UnixNano())
	return unix.Settimeofday(&tv)
}

func (system) Trust(e time.Duration) error {
	us := int64(e / time.Microsecond)
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Status: 0, Maxerror: us, Esterror: us})
	return err
}
