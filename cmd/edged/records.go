package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/link/record"
	"tributary.dev/tributary/pkg/link/spool"
)

// line is one record as it is printed.
type line struct {
	Seq   uint64     `json:"seq"`
	Last  uint64     `json:"last"`
	Kind  string     `json:"kind"`
	Usage *api.Usage `json:"usage,omitempty"`
	Event *api.Event `json:"event,omitempty"`
	KPI   *api.KPI   `json:"kpi,omitempty"`
	// Data is the payload, base64, of a kind that is not known.
	Data string `json:"data,omitempty"`
}

var kindNames = map[api.RecordKind]string{api.RecordUsage: "usage", api.RecordEvent: "event", api.RecordAudit: "audit", api.RecordTelemetry: "telemetry", record.Lost: "lost"}

func lineOf(r record.Record) line {
	l := line{Seq: r.Seq, Last: max(r.Seq, r.Last), Kind: kindNames[r.Kind]}
	switch r.Kind {
	case api.RecordUsage:
		if u, err := record.DecodeUsage(r.Payload); err == nil {
			l.Usage = &u
		}
	case api.RecordEvent, api.RecordAudit:
		if e, err := record.DecodeEvent(r.Payload); err == nil {
			l.Event = &e
		}
	case api.RecordTelemetry:
		if k, err := record.DecodeKPI(r.Payload); err == nil {
			l.KPI = &k
		}
	}
	if l.Usage == nil && l.Event == nil && l.KPI == nil && len(r.Payload) > 0 {
		l.Data = base64.StdEncoding.EncodeToString(r.Payload)
	}
	return l
}

// printRecords writes every record that is kept, oldest first.
func printRecords(w io.Writer, s *spool.Spool) error {
	enc := json.NewEncoder(w)
	first, last, _, _ := s.Range()
	for at := first; at <= last; {
		list, err := s.Read(at, 256<<10)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		for _, r := range list {
			if err := enc.Encode(lineOf(r)); err != nil {
				return err
			}
			at = max(r.Seq, r.Last) + 1
		}
	}
	return nil
}

// records is edged records: through the local socket while edged runs, else from the
// disk.
func records(ctx context.Context, args []string, out, errs io.Writer) error {
	f := flag.NewFlagSet("edged records", flag.ContinueOnError)
	f.SetOutput(errs)
	data := f.String("data", "/var/lib/edged", "edged's data folder")
	run := f.String("run", "/run/edged", "edged's run folder")
	if err := f.Parse(args); err != nil {
		return flagError(err)
	}
	err := ask(ctx, *run, "/records", func(r io.Reader) error { _, err := io.Copy(out, r); return err })
	if api.CodeOf(err) != api.Unavailable {
		return err
	}
	path := filepath.Join(*data, "state.db")
	if _, statErr := os.Stat(path); statErr != nil {
		return errors.Join(err, &api.Error{Code: api.NotFound, Message: "no box has lived in " + *data, Remedy: "give its --data folder", Err: statErr})
	}
	quiet := slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	st, err := state.Open(state.Config{Path: path, Log: quiet})
	if err != nil {
		return err
	}
	defer st.Close()
	s, err := spool.Open(spool.Config{Dir: filepath.Join(*data, "spool"), DB: st.DB(), Now: nowFunc, Rand: randReader, Log: quiet})
	if err != nil {
		return err
	}
	defer s.Close()
	return printRecords(out, s)
}
