package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/server"
)

// maxControl bounds a request on the control socket: 64 bytes for each of a million
// devices.
const maxControl = 64 << 20

// control gives the path of the control socket, by way of an open folder: the path of a
// socket has at most 108 bytes, that of the data folder may have more.
func (d data) control(name string) (path string, dir *os.File, err error) {
	dir, err = os.Open(string(d))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), dir, nil
}

// serveControl answers other cored commands on the same machine. The socket lies in the
// data folder, which only the owner enters.
func (c *core) serveControl(ctx context.Context) error {
	path, dir, err := c.o.data.control(c.socket())
	if err != nil {
		return err
	}
	defer dir.Close()
	_ = os.Remove(path) // of an earlier run: the folder's lock is ours
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: c.controls(), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(srv.Close(), ctx.Err())
	}
}

// markSafe notes what a backup counts: in the core that runs, or, when none does, in its
// ledger.
func markSafe(ctx context.Context, d data, counted intake.Watermark) (err error) {
	lock, err := d.lock()
	if err == nil {
		defer func() { err = errors.Join(err, lock.Close()) }()
		in, err := d.openLedger(ctx, intake.Config{Now: time.Now})
		if err != nil {
			return err
		}
		_, err = in.MarkSafe(ctx, counted)
		return errors.Join(err, in.Close())
	}
	if api.CodeOf(err) != api.Unavailable {
		return err
	}
	body, err := json.Marshal(counted)
	if err != nil {
		return err
	}
	if err := d.order(ctx, "/safe", body); err != nil {
		return fmt.Errorf("the backup is written, but the running core did not note it; make another: %w", err)
	}
	return nil
}

// order has the core that runs on the folder do something.
func (d data) order(ctx context.Context, what string, body []byte) error {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) }}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://cored"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	e := &api.Error{}
	if json.Unmarshal(b, e) == nil && e.Message != "" {
		return e
	}
	return errors.Join(err, fmt.Errorf("the running core answered %s: %s", resp.Status, b))
}

// dial reaches a core that runs on the folder: any of several.
func (d data) dial(ctx context.Context) (conn net.Conn, err error) {
	err = &api.Error{Code: api.Unavailable, Message: "no cored answers on " + string(d), Remedy: "start it"}
	for _, name := range d.sockets() {
		path, dir, fault := d.control(name)
		if fault != nil {
			return nil, fault
		}
		conn, fault = new(net.Dialer).DialContext(ctx, "unix", path)
		dir.Close()
		if fault == nil {
			return conn, nil
		}
		err = errors.Join(err, fault)
	}
	return nil, err
}

// controls are the routes of the control socket. What a person began there goes on when they
// hang up.
func (c *core) controls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /safe", c.backedUp)
	turn := func(path, key string, rotate func(ctx context.Context, lost bool) error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			err := c.onlyOne()
			if err == nil {
				err = rotate(context.WithoutCancel(r.Context()), r.URL.Query().Has("lost"))
			}
			if err != nil {
				c.log.Error("the "+key+" cannot be rotated", "err", err)
				server.WriteError(w, err)
				return
			}
			c.log.Info("the " + key + " was rotated")
			w.WriteHeader(http.StatusNoContent)
		})
	}
	turn("/secrets/rotate", "key of secrets", func(ctx context.Context, _ bool) error { return c.store.Rotate(ctx, rand.Reader) })
	turn(sealingRotate, "sealing key", c.rotateSealing)
	turn(unlockRotate, "unlock key", func(ctx context.Context, lost bool) error {
		if err := c.ca.RotateUnlock(lost); err != nil {
			return err
		}
		return c.fleet.TouchAll(ctx)
	})
	// Profiles are for whoever may read the data folder, and not for the network.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// backedUp hears which records a backup holds, and tells the devices that may forget them.
func (c *core) backedUp(w http.ResponseWriter, r *http.Request) {
	var counted intake.Watermark
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControl)).Decode(&counted); err != nil {
		server.WriteError(w, &api.Error{Code: api.Invalid, Message: "not a watermark", Err: err})
		return
	}
	c.intake.Keep()
	moved, err := c.intake.MarkSafe(r.Context(), counted)
	if err != nil {
		c.log.Error("a backup cannot be noted", "err", err)
		server.WriteError(w, err)
		return
	}
	for _, id := range moved {
		p, err := c.intake.Position(id)
		if err != nil {
			c.log.Warn("a device is not told of the backup now; its next records will be", "device", id, "err", err)
			continue
		}
		c.end.Answer(id, p)
	}
	c.log.Info("a backup was made", "devices", len(counted), "moved", len(moved))
	w.WriteHeader(http.StatusNoContent)
}
