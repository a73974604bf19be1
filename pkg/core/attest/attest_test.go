package attest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/tpm"
	judge "tributary.dev/tributary/pkg/tpm/attest"
	"tributary.dev/tributary/pkg/tpm/tpmtest"
	"tributary.dev/tributary/tests/mutation"
)

const (
	ourKeys, newKeys = "our db", "our db, and another key"
	v1, v2           = "release 1", "release 2"
)

var box1 = api.DeviceID{1}

// site is a core's room with a store of its own, and a clock that a test moves.
type site struct {
	*Room
	t       *testing.T
	now     time.Time
	sealing *ecdsa.PrivateKey
	systems []judge.Release
	retired bool
	changed int
	path    string
}

func newSite(t *testing.T) *site {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, now: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC), sealing: key, path: filepath.Join(t.TempDir(), "core.db"),
		systems: []judge.Release{{Name: "1", PCR11: after(v1)}, {Name: "2", PCR11: after(v2)}}}
	s.open()
	return s
}

func (s *site) open() {
	s.t.Helper()
	db, err := store.Open(s.t.Context(), store.Config{Place: s.path, Now: func() time.Time { return s.now }})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	s.Room, err = Open(s.t.Context(), Config{
		Store: db, Active: func(api.DeviceID) bool { return !s.retired }, NameOf: func(api.DeviceID) string { return "box" },
		Systems: func(api.DeviceID) []judge.Release { return s.systems },
		OpenKey: func(i identity.SealInfo, b []byte) ([]byte, error) { return identity.Open(s.sealing, i, b) },
		Changed: func(api.DeviceID) { s.changed++ }, Alarm: func(api.DeviceID, api.Warning) {},
		Now: func() time.Time { return s.now }, Random: rand.Reader, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func after(events ...string) [32]byte {
	var log [][]byte
	for _, e := range events {
		log = append(log, judge.Event([]byte(e)))
	}
	return judge.Replay(log)
}

// machine is a box with a TPM.
type machine struct {
	*tpmtest.Box
	t    *testing.T
	tpm  *tpm.TPM
	log  [][]byte
	name api.DeviceID
}

func newMachine(t *testing.T) *machine {
	return &machine{Box: tpmtest.New(t), t: t, name: box1}
}

// boot starts it; opened: it took its state's key out.
func (m *machine) boot(firmware, system string, opened bool) *machine {
	m.t.Helper()
	m.tpm, m.log = tpm.New(m.Start()), nil
	err := m.tpm.Extend(tpm.PCRSecureBoot, []byte(firmware))
	for _, e := range append([]string{system}, map[bool][]string{true: {judge.StateOpened}}[opened]...) {
		err = errors.Join(err, m.tpm.Extend(tpm.PCRKernel, []byte(e)))
		m.log = append(m.log, judge.Event([]byte(e)))
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return m
}

func (m *machine) evidence(nonce [32]byte) []byte {
	m.t.Helper()
	e, err := m.tpm.Quote(nonce, []uint{tpm.PCRSecureBoot, tpm.PCRKernel}, m.log)
	if err != nil {
		m.t.Fatal(err)
	}
	b, err := e.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

func (s *site) challenge() judge.Challenge {
	c, err := judge.NewChallenge(rand.Reader, s.now, Life)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) report(m *machine, c judge.Challenge, key []byte) *judge.Report {
	s.t.Helper()
	p, err := m.tpm.Public()
	if err != nil {
		s.t.Fatal(err)
	}
	r := &judge.Report{Evidence: m.evidence(c.Nonce), Attestation: p.Attestation, Endorsement: p.Endorsement, Sealed: "file"}
	if key != nil {
		if r.Escrow, err = identity.Seal(&s.sealing.PublicKey, identity.SealInfo{Device: m.name, Name: judge.EscrowName}, key); err != nil {
			s.t.Fatal(err)
		}
	}
	return r
}

// tell has the device answer a challenge, with a key for the escrow or nil.
func (s *site) tell(m *machine, key []byte) judge.Reply {
	s.t.Helper()
	c := s.challenge()
	reply, err := s.Report(s.t.Context(), m.name, c, s.report(m, c, key))
	if err != nil {
		s.t.Fatal(err)
	}
	return reply
}

// ask has a box that waits ask for its state's key.
func (s *site) ask(m *machine) (*identity.RecoverReply, error) {
	nonce := identity.RecoverNonce(m.name, []byte("the core's nonce"))
	return s.Recover(s.t.Context(), nonce, &identity.RecoverRequest{Device: m.name, Evidence: m.evidence(nonce), Reason: "PCR 7 changed"})
}

func secret(t *testing.T) []byte {
	b := make([]byte, tpm.MaxCredential)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecovery goes from the first report to a box with other firmware that gets its key back.
func TestRecovery(t *testing.T) {
	s, m, key := newSite(t), newMachine(t), secret(t)
	if reply := s.tell(m.boot(ourKeys, v1, true), key); !reply.Escrowed || reply.Refused != "" {
		t.Fatalf("%+v", reply)
	}
	if ok, why := s.Attested(box1); !ok || s.Status(box1).System != "1" || !s.Status(box1).Escrow {
		t.Fatalf("%s, %+v", why, s.Status(box1))
	}
	if err := s.Approve(t.Context(), box1, "anna"); api.CodeOf(err) != api.Conflict {
		t.Errorf("approved where nothing waits: %v", err)
	}
	// The release changes, then the firmware's keys: the box waits.
	m.boot(newKeys, v2, false)
	reply, err := s.ask(m)
	if err != nil || reply.Blob != nil || reply.Message == "" {
		t.Fatalf("nobody has approved: %+v, %v", reply, err)
	}
	if w := s.Status(box1).Waiting; w == nil || w.System != "2" || w.Message != "PCR 7 changed" || w.Approved != nil {
		t.Errorf("%+v", w)
	}
	m.boot(newKeys, v1, false)
	if _, err := s.ask(m); err != nil || s.Status(box1).Waiting.System != "1" {
		t.Errorf("%+v, %v", s.Status(box1).Waiting, err)
	}
	all := s.systems
	s.systems = nil
	if _, err := s.ask(m); err != nil || s.Status(box1).Waiting.System != "as before" {
		t.Errorf("%+v, %v", s.Status(box1).Waiting, err)
	}
	s.systems = all
	m.boot(newKeys, v2, false)
	s.open() // the core restarts
	if _, err := s.ask(m); err != nil {
		t.Fatal(err)
	}
	if err := s.Approve(t.Context(), box1, "anna"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first answer is lost
		if reply, err = s.ask(m); err != nil {
			t.Fatal(err)
		}
		got, err := m.tpm.Activate(tpm.Credential{Blob: reply.Blob, Secret: reply.Secret})
		if err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	// It comes up, and the new firmware is the measure.
	if reply := s.tell(m.boot(newKeys, v2, true), nil); reply.Refused != "" {
		t.Errorf("%+v", reply)
	}
	if ok, why := s.Attested(box1); !ok || s.Status(box1).Waiting != nil {
		t.Errorf("%s, %+v", why, s.Status(box1))
	}
	if reply := s.tell(m.boot(ourKeys, v2, true), nil); reply.Refused == "" {
		t.Error("the old firmware is still taken")
	}
}

// recoveries are who must not get the key, each with the check that stops it. other is another
// box's machine.
func recoveries(other *machine) map[string]recovery {
	return map[string]recovery{
		"no approval": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			return s.ask(m.boot(newKeys, v1, false))
		}, "approval"},
		"an approval for other firmware": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			return s.ask(m.boot("a thief's keys", v1, false))
		}, "approval"},
		"an approval of yesterday": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			s.now = s.now.Add(24 * time.Hour)
			return s.ask(m)
		}, "approval"},
		"a stale nonce": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			old := identity.RecoverNonce(box1, []byte("yesterday's"))
			return s.Recover(t.Context(), identity.RecoverNonce(box1, []byte("today's")), &identity.RecoverRequest{Device: box1, Evidence: m.evidence(old)})
		}, "nonce"},
		"another box's quote": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			return s.ask(other.boot(newKeys, v1, false))
		}, "key"},
		"an altered PCR": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			m.boot("a thief's keys", v1, false)
			nonce := identity.RecoverNonce(box1, nil)
			e, err := judge.Decode(m.evidence(nonce))
			if err != nil {
				t.Fatal(err)
			}
			good := after(newKeys)
			e.PCRs[0].Value = good[:]
			b, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return s.Recover(t.Context(), nonce, &identity.RecoverRequest{Device: box1, Evidence: b})
		}, "what was quoted"},
		"another system": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			return s.ask(m.boot(newKeys, "a thief's", false))
		}, "release"},
		"a running system": {func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error) {
			s.approved(m.boot(newKeys, v1, false))
			return s.ask(m.boot(newKeys, v1, true))
		}, "closed state"},
	}
}

type recovery struct {
	try   func(t *testing.T, s *site, m *machine) (*identity.RecoverReply, error)
	check string
}

func TestRecoveryRefused(t *testing.T) {
	for name, c := range recoveries(newMachine(t)) {
		t.Run(name, func(t *testing.T) {
			s, m, key := newSite(t), newMachine(t), secret(t)
			if !s.tell(m.boot(ourKeys, v1, true), key).Escrowed {
				t.Fatal("no escrow")
			}
			if reply, err := c.try(t, s, m); err == nil && reply.Blob != nil {
				t.Error("the key is given away")
			}
		})
	}
}

func (s *site) approved(m *machine) {
	s.t.Helper()
	if _, err := s.ask(m); err != nil {
		s.t.Fatal(err)
	}
	if err := s.Approve(s.t.Context(), box1, "anna"); err != nil {
		s.t.Fatal(err)
	}
}

// TestRecoveryNeedsEscrow: of whom the core has no key, or who is retired, nothing is heard.
func TestRecoveryNeedsEscrow(t *testing.T) {
	s, m := newSite(t), newMachine(t).boot(ourKeys, v1, false)
	if _, err := s.ask(m); api.CodeOf(err) != api.Forbidden {
		t.Errorf("an unknown box: %v", err)
	}
	s.tell(m.boot(ourKeys, v1, true), nil)
	if _, err := s.ask(m.boot(ourKeys, v1, false)); api.CodeOf(err) != api.Forbidden {
		t.Errorf("no escrow: %v", err)
	}
	s.tell(m.boot(ourKeys, v1, true), secret(t))
	s.retired = true
	if _, err := s.ask(m.boot(ourKeys, v1, false)); api.CodeOf(err) != api.Forbidden {
		t.Errorf("retired: %v", err)
	}
	s.retired = false
	if _, err := s.ask(m); err != nil {
		t.Errorf("neither: %v", err)
	}
}

// reports are who is not attested, each with the check that tells. other is another box's machine.
func reports(t *testing.T, other *machine) map[string]report {
	return map[string]report{
		"another TPM":    {func(s *site, _ *machine) judge.Reply { return s.tell(other.boot(ourKeys, v1, true), nil) }, "identity"},
		"other firmware": {func(s *site, m *machine) judge.Reply { return s.tell(m.boot(newKeys, v1, true), nil) }, "baseline"},
		"another system": {func(s *site, m *machine) judge.Reply { return s.tell(m.boot(ourKeys, "none of ours", true), nil) },
			"release"},
		"a root shell": {func(s *site, m *machine) judge.Reply {
			m.boot(ourKeys, v1, true)
			if err := m.tpm.Extend(tpm.PCRKernel, []byte(judge.ShellOpened)); err != nil {
				t.Fatal(err)
			}
			m.log = append(m.log, judge.Event([]byte(judge.ShellOpened)))
			return s.tell(m, nil)
		}, "release"},
		"a stale nonce": {func(s *site, m *machine) judge.Reply {
			r := s.report(m.boot(ourKeys, v1, true), s.challenge(), nil)
			reply, err := s.Report(context.Background(), box1, s.challenge(), r)
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}, "nonce"},
		"too late": {func(s *site, m *machine) judge.Reply {
			c := s.challenge()
			r := s.report(m.boot(ourKeys, v1, true), c, nil)
			s.now = s.now.Add(Life)
			reply, err := s.Report(context.Background(), box1, c, r)
			if err != nil {
				t.Fatal(err)
			}
			return reply
		}, "in time"},
	}
}

type report struct {
	try   func(s *site, m *machine) judge.Reply
	check string
}

// TestReportRefused: who is not attested, and why.
func TestReportRefused(t *testing.T) {
	for name, c := range reports(t, newMachine(t)) {
		t.Run(name, func(t *testing.T) {
			s, m := newSite(t), newMachine(t)
			s.tell(m.boot(ourKeys, v1, true), nil)
			reply := c.try(s, m)
			if ok, why := s.Attested(box1); ok || why == "" || reply.Refused != why {
				t.Errorf("believed: %v, %q, %q", ok, why, reply.Refused)
			}
			if changed, err := s.Review(t.Context()); err != nil || len(changed) > 0 {
				t.Errorf("believed at a second look: %v, %v", changed, err)
			}
		})
	}
}

// TestReview: what a device may run changes, and with it what its last word is worth.
func TestReview(t *testing.T) {
	s, m := newSite(t), newMachine(t)
	all := s.systems
	s.systems = nil
	if s.tell(m.boot(ourKeys, v1, true), nil).Refused == "" {
		t.Fatal("believed, and nothing may run")
	}
	for _, c := range []struct {
		systems  []judge.Release
		attested bool
		changed  int
	}{{nil, false, 0}, {all, true, 1}, {all, true, 0}, {all[1:], false, 1}, {all, true, 1}} {
		s.systems = c.systems
		changed, err := s.Review(t.Context())
		if ok, why := s.Attested(box1); err != nil || ok != c.attested || len(changed) != c.changed {
			t.Errorf("%d systems: %v, %q, %v, %v", len(c.systems), ok, why, changed, err)
		}
	}
	// What was refused for another reason stays refused.
	s.tell(m.boot(newKeys, v1, true), nil)
	if changed, err := s.Review(t.Context()); err != nil || len(changed) != 0 {
		t.Errorf("%v, %v", changed, err)
	}
	if ok, _ := s.Attested(box1); ok {
		t.Error("other firmware is believed")
	}
}

// TestApproveFirmware: a running box whose firmware changed is taken as it is once a person says so.
func TestApproveFirmware(t *testing.T) {
	s, m := newSite(t), newMachine(t)
	s.tell(m.boot(ourKeys, v1, true), nil)
	s.tell(m.boot(newKeys, v1, true), nil)
	if err := s.Approve(t.Context(), box1, "anna"); err != nil {
		t.Fatal(err)
	}
	s.tell(m, nil)
	if ok, why := s.Attested(box1); !ok {
		t.Error(why)
	}
	s.now = s.now.Add(MaxAge + time.Hour)
	if ok, _ := s.Attested(box1); ok {
		t.Error("what was shown three days ago still holds")
	}
}

// word is what the TPM says of PCR 7 to come.
func (m *machine) word(firmwares ...string) (w judge.Word) {
	m.t.Helper()
	for _, f := range firmwares {
		v := after(f)
		w.PCR7 = append(w.PCR7, v[:])
	}
	w.Evidence = m.evidence([32]byte(judge.Foretold(w.PCR7)))
	return w
}

// TestForetoldFirmware: a box whose firmware's keys changed as its TPM said before, on a system that it may run, is attested
// without a person; by anybody else's word, or none, it is not.
func TestForetoldFirmware(t *testing.T) {
	for name, c := range foretellings(t, newMachine(t)) {
		t.Run(name, func(t *testing.T) {
			s, m := newSite(t), newMachine(t)
			s.tell(m.boot(ourKeys, v1, true), nil)
			words := c.words(m)
			m.boot(newKeys, v1, true)
			ask := s.challenge()
			r := s.report(m, ask, nil)
			r.Words = words
			reply, err := s.Report(t.Context(), box1, ask, r)
			if err != nil {
				t.Fatal(err)
			}
			if believed := reply.Refused == ""; believed != (c.check == "") {
				t.Errorf("believed: %v, %+v", believed, reply)
			}
			if c.check == "" { // and it is what is known from then on
				if s.tell(m.boot(newKeys, v1, true), nil); s.Status(box1).Message != "" {
					t.Error(s.Status(box1).Message)
				}
			}
		})
	}
}

type foretelling struct {
	words func(m *machine) []judge.Word
	check string // empty for what is believed
}

// foretellings are words of what PCR 7 may become, each with the check that does not believe it.
func foretellings(t *testing.T, other *machine) map[string]foretelling {
	const newest = "our db, and two more keys"
	return map[string]foretelling{
		"foretold":         {func(m *machine) []judge.Word { return []judge.Word{m.boot(ourKeys, v1, true).word("never", newKeys)} }, ""},
		"by another start": {func(m *machine) []judge.Word { return []judge.Word{m.boot(ourKeys, v2, true).word(newKeys)} }, ""},
		"in two steps": {func(m *machine) []judge.Word {
			return []judge.Word{m.boot(ourKeys, v1, true).word(newest), m.boot(newest, v1, true).word(newKeys)}
		}, ""},
		"something else":   {func(m *machine) []judge.Word { return []judge.Word{m.boot(ourKeys, v1, true).word(newest)} }, "baseline"},
		"nobody's word":    {func(*machine) []judge.Word { return nil }, "baseline"},
		"of another PCR 7": {func(m *machine) []judge.Word { return []judge.Word{m.boot(newest, v1, true).word(newKeys)} }, "baseline"},
		"another's word":   {func(*machine) []judge.Word { return []judge.Word{other.boot(ourKeys, v1, true).word(newKeys)} }, "key"},
		"another system's": {func(m *machine) []judge.Word {
			return []judge.Word{m.boot(ourKeys, "none of ours", true).word(newKeys)}
		}, "release"},
		"after a shell": {func(m *machine) []judge.Word {
			m.boot(ourKeys, v1, true)
			if err := m.tpm.Extend(tpm.PCRKernel, []byte(judge.ShellOpened)); err != nil {
				t.Fatal(err)
			}
			m.log = append(m.log, judge.Event([]byte(judge.ShellOpened)))
			return []judge.Word{m.word(newKeys)}
		}, "release"},
		"changed": {func(m *machine) []judge.Word {
			w, to := m.boot(ourKeys, v1, true).word(newest), after(newKeys)
			w.PCR7[0] = to[:]
			return []judge.Word{w}
		}, "nonce"},
	}
}

// TestChecks: in a build without its check, each that is refused is believed.
func TestChecks(t *testing.T) {
	checks := mutation.Marked(t, "", "attest.go", "recover.go", "../../tpm/attest/attest.go")
	recovers, reported, foretold := map[string]string{}, map[string]string{}, map[string]string{}
	for name, c := range recoveries(nil) {
		recovers[name] = c.check
	}
	for name, c := range reports(t, nil) {
		reported[name] = c.check
	}
	for name, c := range foretellings(t, nil) {
		foretold[name] = c.check
	}
	mutation.Prove(t, slices.Concat(mutation.Each(t, checks, "TestRecoveryRefused", "the key is given away", recovers),
		mutation.Each(t, checks, "TestReportRefused", "believed", reported), mutation.Each(t, checks, "TestForetoldFirmware", "believed: true", foretold))...)
}

// TestEscrowAgain: a core that has no key of a box, or another, or cannot open it any more, asks for it again.
func TestEscrowAgain(t *testing.T) {
	s, m := newSite(t), newMachine(t).boot(ourKeys, v1, true)
	key := secret(t)
	tell := func(escrow []byte) judge.Reply {
		t.Helper()
		s.now = s.now.Add(time.Second)
		c := s.challenge()
		r := s.report(m, c, escrow)
		r.Sealed, r.Key = "tpm2", judge.KeyDigest(key)
		reply, err := s.Report(t.Context(), box1, c, r)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	for _, c := range []struct {
		what  string
		spoil func()
	}{
		{"none", func() {}},
		{"another", func() { s.tell(m, secret(t)) }},
		{"of another sealing key", func() {
			var err error
			if s.sealing, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		c.spoil()
		if reply := tell(nil); !reply.Again {
			t.Errorf("%s: %+v", c.what, reply)
		}
		if reply := tell(key); reply.Again || !reply.Escrowed {
			t.Errorf("%s, brought again: %+v", c.what, reply)
		}
		if reply := tell(nil); reply.Again {
			t.Errorf("%s: it was brought, and is asked for: %+v", c.what, reply)
		}
	}
	if s.tell(m, nil).Again {
		t.Error("a box whose key stands in the open is asked for it")
	}
	key = secret(t)
	if reply := tell([]byte("short")); reply.Again || reply.Escrowed {
		t.Errorf("a key that is not taken is asked for without end: %+v", reply)
	}
}

// TestReseal: what is kept under an earlier sealing key opens by the new one alone, and what no key opens stays as it is.
func TestReseal(t *testing.T) {
	s, m := newSite(t), newMachine(t).boot(ourKeys, v1, true)
	key := secret(t)
	if !s.tell(m, key).Escrowed {
		t.Fatal("no escrow")
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may be repeated
		if err := s.Reseal(t.Context(), own); err != nil {
			t.Fatal(err)
		}
		s.sealing = own
	}
	if !s.holds(box1, s.records[box1], judge.KeyDigest(key)) {
		t.Error("the key does not open by the new sealing key")
	}
	before := s.records[box1].Escrow
	if s.sealing, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := s.Reseal(t.Context(), s.sealing); err != nil || !bytes.Equal(s.records[box1].Escrow, before) {
		t.Errorf("what does not open is lost for it: %v", err)
	}
}

// TestEscrowRefused: a key that the core cannot open, or of another length, is no escrow.
func TestEscrowRefused(t *testing.T) {
	s, m := newSite(t), newMachine(t)
	if s.tell(m.boot(ourKeys, v1, true), []byte("short")).Escrowed {
		t.Error("a short key")
	}
	c := s.challenge()
	r := s.report(m, c, secret(t))
	r.Escrow[len(r.Escrow)-1] ^= 1
	if reply, err := s.Report(t.Context(), box1, c, r); err != nil || reply.Escrowed || reply.Refused == "" {
		t.Errorf("%+v, %v", reply, err)
	}
	// One that was overtaken.
	early, key := s.challenge(), secret(t)
	s.now = s.now.Add(time.Second)
	if !s.tell(m, key).Escrowed {
		t.Fatal("no escrow")
	}
	if reply, err := s.Report(t.Context(), box1, early, s.report(m, early, secret(t))); err != nil || reply.Escrowed {
		t.Errorf("an answer that was overtaken: %+v, %v", reply, err)
	}
	s.now = s.now.Add(time.Second)
	// Bound to the device: another's does not pass.
	c = s.challenge()
	r = s.report(m, c, secret(t))
	if reply, err := s.Report(t.Context(), api.DeviceID{2}, c, r); err != nil || reply.Escrowed {
		t.Errorf("another device's: %+v, %v", reply, err)
	}
}

func FuzzReport(f *testing.F) {
	db, err := store.Open(context.Background(), store.Config{Now: time.Now})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	r, err := Open(context.Background(), Config{
		Store: db, Active: func(api.DeviceID) bool { return true }, NameOf: func(api.DeviceID) string { return "box" },
		Systems: func(api.DeviceID) []judge.Release { return nil },
		OpenKey: func(identity.SealInfo, []byte) ([]byte, error) { return nil, errors.New("shut") },
		Changed: func(api.DeviceID) {}, Alarm: func(api.DeviceID, api.Warning) {}, Now: time.Now, Random: rand.Reader, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"unable":"no TPM"}`))
	f.Add([]byte(`{"evidence":"oA==","attestation":"AA==","endorsement":"AA==","sealed":"tpm2","escrow":"AA=="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var report judge.Report
		if json.Unmarshal(b, &report) != nil {
			return
		}
		reply, err := r.Report(context.Background(), box1, judge.Challenge{Expires: time.Now().Add(Life)}, &report)
		if err != nil || reply.Escrowed {
			t.Errorf("%+v, %v", reply, err)
		}
		if ok, _ := r.Attested(box1); ok {
			t.Error("attested")
		}
	})
}
