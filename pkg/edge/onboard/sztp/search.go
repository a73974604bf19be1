package sztp

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Config is what a search is given. Key, IDevID, Sources, Clock and Log are needed.
type Config struct {
	// Key is that of the IDevID, of P-256; it may be the TPM's.
	Key crypto.Signer
	// Own is the key that the box made itself, by which it shows a pairing code; nil is Key.
	Own *ecdsa.PrivateKey
	// IDevID is the certificate of the box's birth, leaf first: a manufacturer's, or
	// voucher.SelfIDevID.
	IDevID []*x509.Certificate
	Makers []*x509.Certificate
	// Pairing lets a person let the box in by the code that it shows.
	Pairing bool
	// Updates tells whether the box can install another system.
	Updates bool
	// Sources names whom to ask; it is asked before each round and may take some seconds.
	Sources func(context.Context) []Source
	// Dial connects to a bootstrap server (names.Networks.Dial); nil is Go's own.
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Clock func() Clock
	// Waiting is told after each round that found nothing.
	Waiting func(api.Warning)
	// Pause bounds the time between rounds; zero means 15 s.
	Pause time.Duration
	Log   *slog.Logger
}

// Search is the way from power on to an owner.
type Search struct {
	cfg    Config
	device Device
	http   *http.Client
	hint   string
	said   string
	by     Source              // that led to the owner
	no     map[[32]byte]string // owners who did not let the box in, and what they said
}

// New prepares a search; it contacts nobody.
func New(cfg Config) (*Search, error) {
	if len(cfg.IDevID) == 0 {
		return nil, errors.New("sztp: a box without a certificate of its birth")
	}
	pub, ok := cfg.Key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("sztp: the key of the box's birth is of another kind")
	}
	s := &Search{cfg: cfg, http: client(cfg.IDevID, cfg.Key, cfg.Dial)}
	s.device = Device{ID: identity.KeyID(pub), Serial: cfg.IDevID[0].Subject.SerialNumber, Makers: cfg.Makers, Updates: cfg.Updates}
	if cfg.Pairing {
		own := cfg.Own
		if own == nil {
			if own, ok = cfg.Key.(*ecdsa.PrivateKey); !ok {
				return nil, errors.New("sztp: a pairing code takes a key of the box's own")
			}
		}
		var err error
		if s.device.Code, err = voucher.Code(own); err != nil {
			return nil, err
		}
		s.hint = voucher.Hint(s.device.Code, s.device.ID)
	}
	return s, nil
}

// Decline tells that an owner who was found did not let the box in: the next walk asks
// others, who may have become its owners since, and the one after that asks him again.
func (s *Search) Decline(f *Found, why error) {
	s.no = map[[32]byte]string{f.RootFP: why.Error()}
	s.report(context.Background(), s.by, voucher.Failed, why.Error())
}

// Device is who the box is, with its pairing code.
func (s *Search) Device() Device { return s.device }

// Run walks through the sources, again and again, until one leads to the owner or ctx
// ends.
func (s *Search) Run(ctx context.Context) (*Found, error) {
	s.cfg.Log.Info("looking for the owner", "device", s.device.ID, "serial", s.device.Serial)
	defer s.http.CloseIdleConnections()
	pause := s.cfg.Pause
	if pause <= 0 {
		pause = 15 * time.Second
	}
	for {
		r := NewRound(s.cfg.Sources(ctx))
		if f := s.walk(ctx, r); f != nil {
			s.cfg.Log.Info("the owner is found", "by", f.Source, "root", fmt.Sprintf("%x", f.RootFP[:8]))
			return f, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.tell(r)
		s.no = nil
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

func (s *Search) walk(ctx context.Context, r *Round) *Found {
	for {
		source, ok := r.Next()
		if !ok || ctx.Err() != nil {
			return nil
		}
		v, err := s.judge(ctx, source)
		if err == nil && v.Owner != nil && v.Conveyed.Onboarding != nil {
			if why, no := s.no[identity.Fingerprint(v.Owner)]; no {
				err = refuse(Declined, "the owner did not let the box in: %.200s", why)
			}
		}
		f := r.Heard(v, err)
		if f != nil {
			f.Source, s.by = strings.ToValidUTF8(f.Source, ""), source
			if source.Kind != Stick {
				f.Server = source.Place
			}
			s.report(ctx, source, voucher.Initiated, "the owner is believed")
			return f
		}
		if ReasonOf(err) != "" {
			s.report(ctx, source, voucher.Failed, err.Error())
		}
	}
}

func (s *Search) judge(ctx context.Context, source Source) (*Verdict, error) {
	var a Artifacts
	var err error
	if source.Kind == Stick {
		a, err = readStick(source.Place, s.device.Serial)
	} else {
		nonce := make([]byte, 16)
		if _, err := rand.Read(nonce); err != nil {
			return nil, err
		}
		a, err = ask(ctx, s.http, source.Place, s.hint, voucher.Ask{SignedDataPreferred: []any{nil}, OSName: "Tributary", Nonce: nonce})
	}
	if err != nil {
		return nil, err
	}
	return Judge(s.device, s.cfg.Clock(), a)
}

// report tells the server that answered how it went; it matters to nobody but its owner.
func (s *Search) report(ctx context.Context, source Source, kind, message string) {
	if source.Kind == Stick || source.Place == "" {
		return
	}
	if err := report(ctx, s.http, source.Place, voucher.Progress{Type: kind, Message: message}); err != nil {
		s.cfg.Log.Debug("progress not reported", "to", source, "err", err)
	}
}

// Done tells whoever led to the owner that the box is a member now.
func (s *Search) Done(ctx context.Context) {
	s.report(ctx, s.by, voucher.Complete, "")
}

// tell says locally why nobody was believed: the pairing code, and each refusal.
func (s *Search) tell(r *Round) {
	w := s.warning(r)
	if s.cfg.Waiting != nil {
		s.cfg.Waiting(w)
	}
	if w.Message != s.said {
		s.said = w.Message
		s.cfg.Log.Warn("no owner yet", "why", w.Message, "remedy", w.Remedy)
	}
}

func (s *Search) warning(r *Round) api.Warning {
	var b strings.Builder
	b.WriteString("this box has no owner yet")
	shown := 0
	for _, f := range r.Refused {
		if errors.Is(f.Err, fs.ErrNotExist) {
			continue // a stick with something else on it
		}
		if shown++; shown > 8 {
			b.WriteString("; and more")
			break
		}
		fmt.Fprintf(&b, "; %s: %.300s", f.Source, f.Err)
	}
	if len(r.Refused) == 0 {
		b.WriteString("; nobody here names one")
	}
	w := api.Warning{Name: "no-owner", Severity: api.Critical, Message: b.String(), Remedy: "have the owner expect it: edgectl device expect " + s.device.Serial + " --voucher FILE"}
	if s.device.Code != "" {
		w.Message += "; its pairing code is " + s.device.Code
		w.Remedy = "let it in: edgectl device approve " + s.device.Code
	}
	return w
}
