package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/attest"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/link/stream"
	judge "tributary.dev/tributary/pkg/tpm/attest"
)

const (
	// asking bounds the devices that are asked at once, asked those that wait for their turn.
	asking = 8
	asked  = 4096
	// askTries and askPause are for a device that does not answer; when it comes again it is
	// asked again in any case.
	askTries = 5
	askPause = time.Minute
)

// question is a device to ask what its TPM shows.
type question struct {
	id    api.DeviceID
	tries int
}

func (c *core) openAttest(ctx context.Context) (err error) {
	c.questions = make(chan question, asked)
	c.attest, err = attest.Open(ctx, attest.Config{
		Store: c.store, Active: c.roster.Active, Random: rand.Reader, Now: time.Now, Log: c.log,
		NameOf: func(id api.DeviceID) string {
			key, _ := c.roster.ObjectOf(id)
			return key.Name
		},
		Systems: func(id api.DeviceID) []judge.Release { return c.fleet.Systems(id) },
		OpenKey: c.ca.OpenSealed,
		Changed: func(id api.DeviceID) { c.fleet.Reported(id) },
		Alarm:   func(id api.DeviceID, w api.Warning) { c.raise(id, w) },
	})
	if err == nil {
		err = c.tidySealing(ctx, false)
	}
	return err
}

// question puts a device on the list; one too many is asked when it comes again.
func (c *core) question(q question) {
	select {
	case c.questions <- q:
	default:
		c.log.Warn("too many devices wait to be asked what their TPMs show", "device", q.id)
	}
}

// booted is told of devices that started anew: what their TPMs showed is of the past.
func (c *core) booted(id api.DeviceID, boot string) {
	if !c.attest.Heard(id, boot) {
		c.question(question{id: id})
	}
}

// runAttest asks devices that come or started, and those that are there once a day.
func (c *core) runAttest(ctx context.Context) error {
	free := make(chan struct{}, asking)
	busy := &busy{more: map[api.DeviceID]bool{}}
	minute, hour := time.NewTicker(time.Minute), time.NewTicker(time.Hour)
	defer minute.Stop()
	defer hour.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-minute.C:
			if !c.fleet.Rendering() {
				continue // another core's
			}
			if err := c.reviewAttest(ctx); err != nil && ctx.Err() == nil {
				c.log.Error("what TPMs showed cannot be looked through; tried again in a minute", "err", err)
			}
		case <-hour.C:
			for _, id := range c.attest.Known() {
				if _, mine := c.end.mine(id); mine && c.attest.Due(id) && c.end.Reachable(id) {
					c.question(question{id: id})
				}
			}
		case q := <-c.questions:
			if !c.saysTPM(ctx, q.id) {
				continue
			}
			if !busy.begin(q.id) {
				continue
			}
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			go func() {
				defer func() { <-free }()
				again := c.ask(ctx, q)
				if busy.end(q.id) {
					c.question(question{id: q.id}) // it started anew meanwhile
				} else if again {
					c.askLater(ctx, q)
				}
			}()
		}
	}
}

// busy has one question at a time to each device.
type busy struct {
	mu   sync.Mutex
	more map[api.DeviceID]bool // those that are asked; true: once more after that
}

func (b *busy) begin(id api.DeviceID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, asked := b.more[id]
	b.more[id] = asked
	return !asked
}

func (b *busy) end(id api.DeviceID) (more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	more = b.more[id]
	delete(b.more, id)
	return more
}

func (c *core) reviewAttest(ctx context.Context) error {
	if err := c.attest.Tidy(ctx); err != nil {
		return err
	}
	changed, err := c.attest.Review(ctx)
	for _, id := range changed {
		err = errors.Join(err, c.touch(ctx, id))
	}
	return err
}

// saysTPM tells whether a device said that it has a TPM.
func (c *core) saysTPM(ctx context.Context, id api.DeviceID) bool {
	key, ok := c.roster.ObjectOf(id)
	if !ok {
		return false
	}
	o, err := c.store.Get(ctx, key)
	if err != nil {
		return false // deleted meanwhile
	}
	var s api.DeviceStatus
	if err := json.Unmarshal(o.Status, &s); err != nil {
		return false
	}
	return s.Hardware != nil && s.Hardware.TPM != "" || s.Attestation != nil
}

// ask has one device's TPM sign a nonce, and takes in what it shows. again: it did not answer.
func (c *core) ask(ctx context.Context, q question) (again bool) {
	before, _ := c.attest.Attested(q.id)
	err := c.askTPM(ctx, q.id)
	if after, _ := c.attest.Attested(q.id); after != before {
		if err := c.touch(ctx, q.id); err != nil {
			c.log.Error("a device is not rendered anew", "device", q.id, "err", err)
		}
	}
	if err == nil || ctx.Err() != nil {
		return false
	}
	c.log.Info("a device does not say what its TPM shows", "device", q.id, "err", err)
	return true
}

// askLater asks again in a while a device that is there then.
func (c *core) askLater(ctx context.Context, q question) {
	if q.tries++; q.tries >= askTries {
		return
	}
	time.AfterFunc(askPause, func() {
		if ctx.Err() == nil && c.end.Reachable(q.id) {
			c.question(q)
		}
	})
}

func (c *core) askTPM(ctx context.Context, id api.DeviceID) error {
	ctx, cancel := context.WithTimeout(ctx, attest.Life)
	defer cancel()
	challenge, err := judge.NewChallenge(rand.Reader, time.Now(), attest.Life)
	if err != nil {
		return err
	}
	conn, err := c.hub.Open(ctx, id, stream.Command{Verb: stream.Attest, Nonce: challenge.Nonce[:]})
	if err != nil {
		return err
	}
	answers, toDevice := io.Pipe()
	defer answers.Close()
	t := &talk{heard: func(line []byte) error {
		var report judge.Report
		if err := json.Unmarshal(line, &report); err != nil {
			return err
		}
		reply, err := c.attest.Report(ctx, id, challenge, &report)
		if err != nil {
			return err
		}
		if reply.Again {
			c.question(question{id: id})
		}
		text, err := json.Marshal(reply)
		if err != nil {
			return err
		}
		go func() { // taken by Run's own goroutine
			_, _ = toDevice.Write(append(text, '\n')) // a device that went away asks for nothing more
			toDevice.Close()
		}()
		return nil
	}}
	_, err = stream.Run(ctx, conn, stream.Local{Stdin: answers, Stdout: t})
	if err == nil && !t.done {
		err = errors.New("the device said nothing")
	}
	return err
}

// talk waits for one line.
type talk struct {
	line  []byte
	heard func(line []byte) error
	done  bool
}

func (t *talk) Write(p []byte) (int, error) {
	if t.done {
		return len(p), nil
	}
	if len(t.line)+len(p) > judge.MaxReport {
		return 0, api.Errorf(api.TooLarge, "a report of more than %d bytes", judge.MaxReport)
	}
	t.line = append(t.line, p...)
	line, _, whole := bytes.Cut(t.line, []byte("\n"))
	if !whole {
		return len(p), nil
	}
	t.done = true
	return len(p), t.heard(line)
}

// unlockState serves a person's word that a device's firmware may be as it shows.
func (c *core) unlockState(w http.ResponseWriter, r *http.Request) {
	id, err := c.server.DeviceOf(r)
	if err == nil {
		err = c.attest.Approve(r.Context(), id, actorOf(r.Context()))
	}
	if err != nil {
		server.WriteError(w, err)
		return
	}
	c.question(question{id: id}) // one that runs shows it anew
	key, _ := c.roster.ObjectOf(id)
	o, err := c.store.Get(r.Context(), key)
	if err != nil {
		server.WriteError(w, err)
		return
	}
	o.Status = nil // as approve answers, but for what the store knows a moment later
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(o); err != nil {
		c.log.Debug("an answer broke off", "err", err)
	}
}
