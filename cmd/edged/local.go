package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
)

func socketPath(run string) string { return filepath.Join(run, "edged.sock") }

// serveLocal answers on a unix socket that only root may open: /status, /metrics,
// /usage, /records, /logs.
func (b *box) serveLocal(ctx context.Context) error {
	path := socketPath(b.o.run)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", b.localStatus)
	mux.HandleFunc("GET /hardware", b.localHardware)
	mux.HandleFunc("GET /usage", b.localUsage)
	mux.HandleFunc("GET /records", b.localRecords)
	mux.HandleFunc("GET /metrics", b.localMetrics)
	mux.HandleFunc("GET /logs", b.localLogs)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() { _ = srv.Serve(l) }() // ends with Close below
	context.AfterFunc(ctx, func() { srv.Close() })
	return nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader has gone when this fails
}

func (b *box) localStatus(w http.ResponseWriter, _ *http.Request) {
	a := b.agent.Load()
	if a == nil {
		warning := api.Warning{Name: "starting", Severity: api.Info, Message: "the box is starting", Remedy: "wait a minute; the agent's log (page Apps and logs) says what it does", Since: b.clock.Now().Unix()}
		if waits := b.waiting.Load(); waits != nil {
			warning = *waits
		}
		answer(w, agent.Status{Version: version, Relay: b.o.relay, Apps: []api.AppStatus{}, Warnings: []api.Warning{warning}})
		return
	}
	s := a.Status()
	s.Parent, s.Online = b.link.Parent()
	answer(w, s)
}

// localHardware tells what the box is made of, and who holds what of it.
func (b *box) localHardware(w http.ResponseWriter, _ *http.Request) {
	seen := b.inventory()
	if b.agent.Load() == nil || seen == nil { // the agent is made after the rooms
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	inventory := *seen
	inventory.Claims = b.claims.Uses()
	answer(w, inventory)
}

func (b *box) localUsage(w http.ResponseWriter, _ *http.Request) {
	a := b.agent.Load()
	if a == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	first, last, acked, safe := b.spool.Range()
	answer(w, map[string]any{"device": b.member.Live.Get().ID(), "spoolEpoch": b.spool.Epoch(), "first": first, "last": last, "acked": acked, "safe": safe, "totals": a.Totals()})
}

func (b *box) localRecords(w http.ResponseWriter, _ *http.Request) {
	if b.agent.Load() == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	if err := printRecords(w, b.spool); err != nil {
		b.log.Warn("records not shown", "err", err)
	}
}

// localMetrics writes OpenMetrics text.
func (b *box) localMetrics(w http.ResponseWriter, _ *http.Request) {
	var out bytes.Buffer
	out.WriteString("# TYPE tributary_link_bytes counter\n# HELP tributary_link_bytes TCP payload that crossed the uplink to the parent.\n")
	count := func(class, direction string, n uint64) {
		fmt.Fprintf(&out, "tributary_link_bytes_total{class=%q,direction=%q} %d\n", class, direction, n)
	}
	if b.agent.Load() != nil {
		b.linkBytes(count)
	}
	count("artifacts", "received", b.https.Received.Load())
	count("artifacts", "sent", b.https.Sent.Load())
	if b.agent.Load() != nil {
		stats := b.link.Stats()
		fmt.Fprintf(&out, "# TYPE tributary_link_refused counter\ntributary_link_refused_total %d\n# TYPE tributary_link_dropped counter\ntributary_link_dropped_total %d\n", stats.Refused, stats.Dropped)
		first, last, acked, safe := b.spool.Range()
		fmt.Fprintf(&out, "# TYPE tributary_spool_bytes gauge\ntributary_spool_bytes %d\n# TYPE tributary_spool_record gauge\n", b.spool.Bytes())
		for name, n := range map[string]uint64{"first": first, "last": last, "acked": acked, "safe": safe} {
			fmt.Fprintf(&out, "tributary_spool_record{at=%q} %d\n", name, n)
		}
	}
	if b.cache != nil {
		c := b.cache.Counters()
		fmt.Fprintf(&out, "# TYPE tributary_cache_bytes counter\ntributary_cache_bytes_total{what=\"fetched\"} %d\ntributary_cache_bytes_total{what=\"served\"} %d\n", c.FetchedBytes, c.ServedBytes)
	}
	if b.splice != nil {
		fmt.Fprintf(&out, "# TYPE tributary_streams gauge\ntributary_streams %d\n", b.splice.Active())
	}
	b.realtime.metrics(&out)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	fmt.Fprintf(&out, "# TYPE go_memstats_heap_inuse_bytes gauge\ngo_memstats_heap_inuse_bytes %d\n# TYPE go_memstats_sys_bytes gauge\ngo_memstats_sys_bytes %d\n# TYPE go_goroutines gauge\ngo_goroutines %d\n# EOF\n", mem.HeapInuse, mem.Sys, runtime.NumGoroutine())
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}

// ask gets a path from the local socket of the edged that runs in folder run.
func ask(ctx context.Context, run, path string, to func(io.Reader) error) error {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socketPath(run))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://edged"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return &api.Error{Code: api.Unavailable, Message: "edged does not answer at " + socketPath(run), Remedy: "is it running? give its --run folder", Err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return api.Errorf(api.Unavailable, "edged answers %s", resp.Status)
	}
	return to(resp.Body)
}

// status is edged status.
func status(ctx context.Context, args []string, out, errs io.Writer) error {
	f := flag.NewFlagSet("edged status", flag.ContinueOnError)
	f.SetOutput(errs)
	run := f.String("run", "/run/edged", "edged's run folder")
	asJSON := f.Bool("json", false, "print JSON")
	if err := f.Parse(args); err != nil {
		return flagError(err)
	}
	return ask(ctx, *run, "/status", func(r io.Reader) error {
		if *asJSON {
			_, err := io.Copy(out, r)
			return err
		}
		var s agent.Status
		if err := json.NewDecoder(r).Decode(&s); err != nil {
			return err
		}
		printStatus(out, s)
		return nil
	})
}

func flagError(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return &api.Error{Code: api.Invalid, Message: err.Error()}
}

func printStatus(w io.Writer, s agent.Status) {
	link := "not connected"
	if s.Online {
		link = "connected to " + s.Parent
	}
	name := s.Name
	if name == "" {
		name = "(no name yet)"
	}
	fmt.Fprintf(w, "%s  %s  edged %s  %s\n", name, s.Device, s.Version, link)
	fmt.Fprintf(w, "manifest %d.%d, in force %d\n", s.Epoch, s.Desired, s.Applied)
	for _, app := range s.Apps {
		fmt.Fprintf(w, "app %-24s %-9s %s\n", app.Name, app.State, app.Message)
		for _, svc := range app.Services {
			fmt.Fprintf(w, "    %-24s %-9s restarts %d  %s %s\n", svc.Name, svc.State, svc.Restarts, svc.Address, svc.Message)
		}
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "warning %s (%s, since %s): %s\n", warning.Name, warning.Severity, time.Unix(warning.Since, 0).UTC().Format(time.RFC3339), warning.Message)
	}
}
