// Package attest answers: does this box, now, run a system that its release has signed?
//
// The core asks with a nonce; the box's TPM signs it together with the digest of its PCRs, and
// the box sends the PCRs' values and the log of what went into PCR 11. Judging is pure: no TPM,
// no clock, no network. The key that signs is the box's attestation key, which the core keeps
// since the box was enrolled.
package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// PCRKernel is where systemd-stub measures the parts of a unified kernel image.
const PCRKernel = 11

// StateOpened is what a box measures into PCR 11 when it has taken the state's key out.
const StateOpened = "tributary:state-opened"

// ShellOpened is what it measures when a person got a root shell on it.
const ShellOpened = "tributary:shell"

// ErrRefused means that the evidence does not show what it should.
var ErrRefused = errors.New("the box is not attested")

// NonceSize is the length of a nonce in bytes.
const NonceSize = 32

// Challenge is what the core asks one box with, once.
type Challenge struct {
	Nonce   [NonceSize]byte
	Expires time.Time
}

// NewChallenge makes one that is good for that long.
func NewChallenge(random io.Reader, now time.Time, life time.Duration) (c Challenge, err error) {
	if random == nil {
		random = rand.Reader
	}
	c.Expires = now.Add(life)
	_, err = io.ReadFull(random, c.Nonce[:])
	return c, err
}

// Foretold is the nonce of the quote by which a box's TPM says, once and for whoever asks later, what PCR 7 may become of
// what it is now. The values have 32 bytes each; their order does not matter.
func Foretold(values [][]byte) []byte {
	h := sha256.New()
	h.Write([]byte("tributary: what PCR 7 may become\x00"))
	for _, v := range slices.SortedFunc(slices.Values(values), bytes.Compare) {
		h.Write(v)
	}
	return h.Sum(nil)
}

// Release is a system that may run, with the value that PCR 11 has once its image is measured.
type Release struct {
	Name  string
	PCR11 [32]byte
}

// Expect is what the core knows before it judges.
type Expect struct {
	Key       *ecdsa.PublicKey // the box's attestation key
	Challenge Challenge
	Now       time.Time
	// PCRs are values that must be just these, such as that of PCR 7.
	PCRs map[uint][32]byte
	// Releases are those that this box may run.
	Releases []Release
}

// Verdict is what good evidence shows.
type Verdict struct {
	Release     string // the name of the release that runs
	StateOpened bool   // it has taken its state's key out
	Resets      uint32 // how often the TPM was started, by its own count
	Clock       uint64 // milliseconds that the TPM ran, by its own count
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

// Verify judges evidence. All errors are ErrRefused.
func (x Expect) Verify(e *Evidence) (*Verdict, error) {
	v, err := x.Authentic(e)
	if err != nil {
		return nil, err
	}
	for n, want := range x.PCRs {
		if got, ok := e.PCR(n); !ok || got != want { // check: values
			return nil, refused("PCR %d is %x, expected %x", n, got, want)
		}
	}
	if err := x.release(e, v); err != nil {
		return nil, err
	}
	return v, nil
}

// Authentic judges who speaks, and when, and that the values given are those that the TPM signed;
// not whether they are good. All errors are ErrRefused.
func (x Expect) Authentic(e *Evidence) (*Verdict, error) {
	if err := e.check(); err != nil {
		return nil, refused("%v", err)
	}
	if !x.Now.Before(x.Challenge.Expires) { // check: in time
		return nil, refused("the answer came too late")
	}
	if x.Key == nil {
		return nil, refused("no attestation key of this box is known")
	}
	sum := sha256.Sum256(e.Quote)
	if !ecdsa.VerifyASN1(x.Key, sum[:], e.Signature) { // check: key
		return nil, refused("the quote is not signed by this box's TPM")
	}
	q, err := parseQuote(e.Quote)
	if err != nil {
		return nil, refused("%v", err)
	}
	if subtle.ConstantTimeCompare(q.nonce, x.Challenge.Nonce[:]) != 1 { // check: nonce
		return nil, refused("the quote answers another question")
	}
	if err := e.matches(q); err != nil {
		return nil, err
	}
	return &Verdict{Resets: q.resets, Clock: q.clock}, nil
}

// matches compares the values given with what the TPM signed.
func (e *Evidence) matches(q *quote) error {
	var all []byte
	var which []uint
	for _, p := range e.PCRs {
		which, all = append(which, p.Index), append(all, p.Value...)
	}
	digest := sha256.Sum256(all)
	if !slices.Equal(which, q.pcrs) { // check: what was quoted
		return refused("the quote is over PCRs %v, values are given for %v", q.pcrs, which)
	}
	if subtle.ConstantTimeCompare(digest[:], q.digest) != 1 { // check: what was quoted
		return refused("the values given are not those that the TPM signed")
	}
	return nil
}

// release finds out what runs: the log replayed must lead to PCR 11's value by way of a known
// release's, and behind it nothing but words that the system itself measures.
func (x Expect) release(e *Evidence, v *Verdict) error {
	have, ok := e.PCR(PCRKernel)
	if !ok {
		return refused("PCR 11 is not among the values")
	}
	opened := sha256.Sum256([]byte(StateOpened))
	if len(e.Log) == 0 {
		return x.compare(have, opened, v)
	}
	var pcr [32]byte
	found := false
	for i, d := range e.Log {
		pcr = extend(pcr, d)
		if !found {
			for _, r := range x.Releases {
				if pcr == r.PCR11 {
					v.Release, found = r.Name, true
				}
			}
			continue
		}
		if [32]byte(d) == sha256.Sum256([]byte(ShellOpened)) { // check: release
			return refused("a root shell was opened in this start")
		}
		if [32]byte(d) != opened { // check: release
			return refused("PCR 11's log has an event that no release measures (number %d)", i+1)
		}
		v.StateOpened = v.StateOpened || [32]byte(d) == opened
	}
	if pcr != have { // check: replay
		return refused("PCR 11's log leads to %x, the TPM has %x", pcr, have)
	}
	if !found { // check: release
		return refused("the box runs a system that is none of the releases it may run")
	}
	return nil
}

// Image is the value of PCR 11 that the log gives the image that was started: without what the
// system itself measured behind it. ok is false when the log does not lead to the PCR's value.
func (e *Evidence) Image() (image [32]byte, ok bool) {
	have, ok := e.PCR(PCRKernel)
	if !ok || len(e.Log) == 0 {
		return have, ok
	}
	log := e.Log
	for len(log) > 0 && (bytes.Equal(log[len(log)-1], Event([]byte(StateOpened))) || bytes.Equal(log[len(log)-1], Event([]byte(ShellOpened)))) {
		log = log[:len(log)-1]
	}
	return Replay(log), Replay(e.Log) == have
}

// compare is for a box whose firmware kept no log: PCR 11 is a release's value, or that with the
// state opened.
func (x Expect) compare(have, opened [32]byte, v *Verdict) error {
	for _, r := range x.Releases {
		v.StateOpened = have == extend(r.PCR11, opened[:])
		if have == r.PCR11 || v.StateOpened {
			v.Release = r.Name
			return nil
		}
	}
	return refused("the box runs a system that is none of the releases it may run")
}

// extend is what a TPM does to a SHA-256 PCR.
func extend(pcr [32]byte, digest []byte) [32]byte {
	return sha256.Sum256(append(pcr[:], digest...))
}

// Event is the digest that an event enters a PCR with.
func Event(content []byte) []byte {
	d := sha256.Sum256(content)
	return d[:]
}

// Section is a part of a unified kernel image, with the digest of its content.
type Section struct {
	Name   string // as ".linux"
	Digest [32]byte
}

// Predict is the log of PCR 11 that systemd-stub makes of an image's sections, in that order:
// for each one its name with a final zero, then its content.
func Predict(sections []Section) (log [][]byte) {
	for _, s := range sections {
		log = append(log, Event(append([]byte(s.Name), 0)), slices.Clone(s.Digest[:]))
	}
	return log
}

// Replay is the value that a log leads to.
func Replay(log [][]byte) (pcr [32]byte) {
	for _, d := range log {
		pcr = extend(pcr, d)
	}
	return pcr
}
