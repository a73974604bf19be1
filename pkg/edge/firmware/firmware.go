// Package firmware answers: how do the keys that a release brings come into the firmware of a box,
// without its encrypted state being shut?
//
// A release carries signed additions to the firmware's lists (KEK, db, dbx). Once it is
// confirmed, the box foretells what PCR 7 will be after each of them, has its state's key sealed
// for that, and only then writes (decision 063). The same is done before a release on trial starts
// that another key signed. What to write, and what PCR 7 may become, is decided by a pure
// function (Decide); Keeper does it.
package firmware

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"tributary.dev/tributary/pkg/efi"
	"tributary.dev/tributary/pkg/tpm/eventlog"
)

// most is how many values of PCR 7 a state can be sealed to.
const most = 6

// Look is what a decision is made of.
type Look struct {
	Lists   map[string][]byte // PK, KEK, db and dbx as they are now
	Carried []efi.Append      // in the order in which they are written
	// Booted are the certificate tables (efi.SignedBy) of the boot manager and kernel image of the slot that runs; Other
	// those of the other slot, none where that holds nothing that starts.
	Booted, Other [][]byte
	// Log is the firmware's; nil on a box without a TPM: nothing is foretold.
	Log []eventlog.Event
	// Vouched tells whether a key of a list signed an addition: efi.Append.SignedIn.
	Vouched func(a efi.Append, list []byte) (bool, error)
}

// Plan is what follows.
type Plan struct {
	Writes []Write
	PCR7   [][]byte // what it may be at the next start, wherever a cut comes
	Waits  []string // why what is carried is not written
}

// Write is one addition, and what the list then is.
type Write struct {
	efi.Append
	List []byte
}

// Decide plans: an addition that the firmware would not take waits, and what it would have vouched for; a revocation waits while one of the slots holds what it would forbid.
func Decide(l Look) (Plan, error) {
	var p Plan
	lists := maps.Clone(l.Lists)
	delete(lists, "PK") // never changes
	stages := []map[string][]byte{maps.Clone(lists)}
	for _, a := range l.Carried {
		content, err := a.Content()
		if err != nil {
			return p, err
		}
		if a.Variable == "dbx" {
			forbidden, err := forbids(content, slices.Concat(l.Booted, l.Other))
			if err != nil {
				return p, err
			}
			if forbidden { // check: revoked
				p.Waits = append(p.Waits, a.Name+": a slot of this box holds what it forbids")
				continue
			}
		}
		next, err := efi.Appended(lists[a.Variable], content)
		if err != nil {
			return p, fmt.Errorf("%s: %w", a.Name, err)
		}
		if bytes.Equal(next, lists[a.Variable]) {
			continue
		}
		by := efi.Authority(a.Variable)
		authority := lists[by]
		if by == "PK" {
			authority = l.Lists[by]
		}
		if signed, err := l.Vouched(a, authority); err != nil {
			return p, err
		} else if !signed { // check: signed
			p.Waits = append(p.Waits, a.Name+": no key in the firmware's "+by+" signed it")
			continue
		}
		if l.Log != nil && len(stages) == most/2 { // the next start has room again
			p.Waits = append(p.Waits, a.Name+": after the next start")
			continue
		}
		lists[a.Variable] = next
		stages = append(stages, maps.Clone(lists))
		p.Writes = append(p.Writes, Write{a, next})
	}
	if l.Log == nil {
		return p, nil
	}
	booted, err := letBy(lists["db"], l.Booted)
	if err != nil {
		return p, fmt.Errorf("what runs: %w", err)
	}
	ways := [][][]byte{booted}
	if other, err := letBy(lists["db"], l.Other); err == nil && len(other) > 0 {
		ways = append(ways, other)
	}
	for _, lists := range stages {
		for _, boots := range ways {
			v, err := eventlog.Foretell(l.Log, eventlog.Change{Variables: lists, Booted: booted, Boots: boots})
			if err != nil {
				return p, err
			}
			if !slices.ContainsFunc(p.PCR7, func(old []byte) bool { return bytes.Equal(old, v[:]) }) {
				p.PCR7 = append(p.PCR7, v[:])
			}
		}
	}
	return p, nil
}

// forbids tells whether one of the certificates in lists signed one of these.
func forbids(lists []byte, tables [][]byte) (bool, error) {
	for _, table := range tables {
		if by, err := efi.LetBy(lists, table); err != nil || by != nil {
			return true, err
		}
	}
	return false, nil
}

// letBy are the entries of db by which the firmware lets these through.
func letBy(db []byte, tables [][]byte) (entries [][]byte, err error) {
	for _, table := range tables {
		by, err := efi.LetBy(db, table)
		if err != nil {
			return nil, err
		}
		if by == nil {
			return nil, errors.New("the firmware's db has no key that signed it")
		}
		entries = append(entries, by)
	}
	return entries, nil
}

// Config is what a Keeper is made of.
type Config struct {
	Variables efi.Variables
	// Carried are the additions of the release that runs.
	Carried func() ([]efi.Append, error)
	// Signed reads the certificate tables of boot manager and kernel image of the slot that runs, and of the other.
	Signed func() (booted, other [][]byte, err error)
	// Log reads the firmware's log; nil without a TPM.
	Log func() ([]eventlog.Event, error)
	// Sealed tells to how many values of PCR 7 the state is sealed; 0 where it is not.
	Sealed func(context.Context) (int, error)
	// Foretell has it sealed to these.
	Foretell func(ctx context.Context, pcr7 [][]byte) error
	// Vouched is Look's; nil is efi.Append.SignedIn.
	Vouched func(a efi.Append, list []byte) (bool, error)
	Say     *slog.Logger
}

// Keeper may be used from any goroutine.
type Keeper struct {
	cfg Config
	mu  sync.Mutex
}

// New makes one.
func New(cfg Config) *Keeper {
	if cfg.Vouched == nil {
		cfg.Vouched = efi.Append.SignedIn
	}
	return &Keeper{cfg: cfg}
}

// look reads all but what is carried.
func (k *Keeper) look() (l Look, err error) {
	l.Vouched = k.cfg.Vouched
	if l.Lists, err = efi.Lists(k.cfg.Variables); err != nil {
		return l, err
	}
	if l.Booted, l.Other, err = k.cfg.Signed(); err != nil {
		return l, err
	}
	l.Log, err = k.cfg.Log()
	return l, err
}

var errEmpty = errors.New("its slot holds nothing that starts")

// Settle writes what the release that runs carries and the firmware lacks, once that release is confirmed. It may be
// repeated, and does nothing where all is there. An error leaves the box as good as it was.
func (k *Keeper) Settle(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !efi.Checks(k.cfg.Variables) {
		return nil
	}
	carried, err := k.cfg.Carried()
	if err != nil {
		return err
	}
	lists, err := efi.Lists(k.cfg.Variables)
	if err != nil {
		return err
	}
	lacks, err := lacking(lists, carried)
	if err != nil {
		return err
	}
	sealed, err := k.cfg.Sealed(ctx)
	if err != nil {
		return err
	}
	if !lacks && sealed <= 1 { // as at nearly every start: the slots are not read
		return nil
	}
	l, err := k.look()
	if err != nil {
		return err
	}
	l.Carried = carried
	p, err := Decide(l)
	if err != nil {
		return err
	}
	for _, why := range p.Waits {
		k.cfg.Say.Info("a change of the firmware's keys waits", "why", why)
	}
	if err := k.foretell(ctx, p); err != nil {
		return err
	}
	for _, w := range p.Writes {
		if err := k.write(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

func lacking(lists map[string][]byte, carried []efi.Append) (bool, error) {
	for _, a := range carried {
		content, err := a.Content()
		if err != nil {
			return false, err
		}
		next, err := efi.Appended(lists[a.Variable], content)
		if err != nil || !bytes.Equal(next, lists[a.Variable]) {
			return true, err
		}
	}
	return false, nil
}

func (k *Keeper) foretell(ctx context.Context, p Plan) error {
	if len(p.PCR7) == 0 {
		return nil
	}
	if err := k.cfg.Foretell(ctx, p.PCR7); err != nil {
		return fmt.Errorf("the state is not sealed for what is to come: %w", err)
	}
	return nil
}

// write hands one addition to the firmware. Where that puts it together otherwise than expected, the state is sealed at
// once for what it did.
func (k *Keeper) write(ctx context.Context, w Write) error {
	if err := w.Append.Write(k.cfg.Variables); err != nil {
		return err
	}
	k.cfg.Say.Info("the firmware's keys are changed", "by", w.Name, "list", w.Variable)
	now, err := efi.Lists(k.cfg.Variables)
	if err != nil {
		return err
	}
	if bytes.Equal(now[w.Variable], w.List) {
		return nil
	}
	l, err := k.look()
	if err != nil {
		return err
	}
	p, err := Decide(l)
	if err == nil {
		err = k.foretell(ctx, p)
	}
	sum := sha256.Sum256(now[w.Variable])
	return errors.Join(fmt.Errorf("%s: the firmware made another list of it than is usual: %x", w.Name, sum[:8]), err)
}

// BeforeTrial is called when the other slot holds a release that is to be tried: where another key signed it, the state
// is sealed for its start too. A release that the firmware would not start is an error.
func (k *Keeper) BeforeTrial(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !efi.Checks(k.cfg.Variables) {
		return nil
	}
	l, err := k.look()
	if err != nil {
		return err
	}
	other, err := letBy(l.Lists["db"], l.Other)
	if err != nil || len(other) == 0 { // check: unknown
		return fmt.Errorf("the firmware would not start the release that is to be tried: %w", cmp.Or(err, errEmpty))
	}
	if forbidden, err := forbids(l.Lists["dbx"], l.Other); err != nil || forbidden { // check: forbidden
		return errors.Join(errors.New("the firmware's dbx forbids the release that is to be tried"), err)
	}
	if booted, err := letBy(l.Lists["db"], l.Booted); err == nil && slices.EqualFunc(booted, other, bytes.Equal) {
		return nil // PCR 7 stays what it is
	}
	p, err := Decide(l)
	if err != nil {
		return err
	}
	return k.foretell(ctx, p)
}
