package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/store"
)

// Fault is a place that is not as it was written.
type Fault struct {
	Table string `json:"table"`
	Row   string `json:"row,omitempty"`
	What  string `json:"what"`
}

func (f Fault) String() string { return strings.TrimSpace(f.Table+" "+f.Row) + ": " + f.What }

// Report is what a verification found.
type Report struct {
	Rows    int64    `json:"rows"`
	Heads   int      `json:"heads"`
	Objects int      `json:"objects"`
	Tokens  int      `json:"tokens"`
	Faults  []Fault  `json:"faults"`
	Notes   []string `json:"notes,omitempty"`
}

// maxFaults bounds the faults of one kind that are listed.
const maxFaults = 100

func (r *Report) fault(table, row, what string, args ...any) {
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, Fault{table, row, fmt.Sprintf(what, args...)})
	}
}

// stands is what the rows say that there is of a thing.
type stands struct {
	name   string
	digest []byte
}

// walk is what reading the rows in their order leads to.
type walk struct {
	report *Report
	heads  []*Head
	known  map[string]stands // kind and uid
	lives  map[int64]uint64  // first row of each epoch after a restore
	seq    int64
	hash   []byte
	broken bool
	byHead map[int64][]*Head
}

// Verify holds the log against its heads, and objects and tokens against the log. objects reads all
// that the store has, with their secrets opened.
func Verify(ctx context.Context, db *database.DB, key Key, objects func(context.Context, *database.Tx) ([]*api.Object, error), heads ...string) (*Report, error) {
	r := &Report{Faults: []Fault{}}
	w := &walk{report: r, known: map[string]stands{}, byHead: map[int64][]*Head{}, lives: map[int64]uint64{}, hash: make([]byte, sha256.Size)}
	for _, path := range heads {
		if err := w.readHeads(key, path); err != nil {
			return nil, err
		}
	}
	err := db.Read(ctx, func(tx *database.Tx) error {
		if err := w.rows(ctx, tx); err != nil {
			return err
		}
		if err := w.end(ctx, tx); err != nil {
			return err
		}
		all, err := objects(ctx, tx)
		if err != nil {
			return err
		}
		w.objects(key, all)
		return w.tokens(ctx, tx, key)
	})
	return r, err
}

// readHeads reads a file of heads, each of which names the one before.
func (w *walk) readHeads(key Key, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return &api.Error{Code: api.NotFound, Message: "the heads of the audit log cannot be read: " + path, Remedy: "name the files by --audit-heads, as `cored run` was told", Err: err}
	}
	defer f.Close()
	prev := make([]byte, sha256.Size)
	lines := bufio.NewReader(io.LimitReader(f, 1<<30))
	for n := 1; ; n++ {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			if line != "" {
				w.report.Notes = append(w.report.Notes, fmt.Sprintf("%s ends in an unfinished line, as a power cut leaves it", path))
			}
			return nil
		}
		if err != nil {
			return err
		}
		line = strings.TrimSuffix(line, "\n")
		h, err := key.parseHead(line)
		if err != nil {
			w.report.fault(path, fmt.Sprintf("line %d", n), "%v", err)
			continue
		}
		if !bytes.Equal(h.Prev, prev) { // check: order of heads
			w.report.fault(path, fmt.Sprintf("line %d", n), "lines before it were taken out or changed")
		}
		sum := sha256.Sum256([]byte(line))
		prev = sum[:]
		w.report.Heads++
		w.heads = append(w.heads, h)
		w.byHead[h.Seq] = append(w.byHead[h.Seq], h)
	}
}

// rows walks the log.
func (w *walk) rows(ctx context.Context, tx *database.Tx) error {
	if err := w.cut(ctx, tx); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, "SELECT "+columns+" FROM audit ORDER BY seq")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		e, err := scan(rows)
		if err != nil {
			return err
		}
		w.row(e)
	}
	return rows.Err()
}

func (w *walk) row(e *api.AuditEntry) {
	name := fmt.Sprintf("row %d", e.Seq)
	if e.Seq != w.seq+1 && !w.broken { // check: gaps of rows
		w.report.fault("audit", fmt.Sprintf("rows %d to %d", w.seq+1, e.Seq-1), "they are missing")
		w.broken = true
	}
	if !w.broken || e.Seq == w.seq+1 {
		if want := rowHash(w.hash, e); !bytes.Equal(want, e.Hash) && !w.broken { // check: chain of rows
			w.report.fault("audit", name, "it, or the one before it, was changed: its hash does not fit")
		}
	}
	w.broken = false // what follows fits to the hash that stands there, or not
	w.seq, w.hash = e.Seq, e.Hash
	w.report.Rows++
	for _, h := range w.byHead[e.Seq] {
		if !bytes.Equal(h.Hash, e.Hash) && !w.replaced(h, e) { // check: heads
			w.report.fault("audit", name, "the head that was signed at %s has another hash: the row, or one before it, was written anew", h.Time.Format(time.RFC3339))
		}
	}
	if e.Action == ActionRestored {
		w.lives[e.Seq] = e.Epoch
		w.report.Notes = append(w.report.Notes, fmt.Sprintf("row %d: %s", e.Seq, e.Message))
	}
	if e.Action != ActionCut && (e.New != nil || e.Old != nil) {
		id := e.Kind + " " + e.UID
		if e.New == nil {
			delete(w.known, id)
		} else {
			w.known[id] = stands{e.TenantName + "/" + e.Object, e.New}
		}
	}
}

// cut begins behind rows that were exported and taken out, as a later row tells.
func (w *walk) cut(ctx context.Context, tx *database.Tx) error {
	var hash []byte
	var last int64
	err := tx.QueryRowContext(ctx, "SELECT count, old FROM audit WHERE action = ? ORDER BY seq DESC LIMIT 1", ActionCut).Scan(&last, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	w.seq, w.hash = last, hash
	return err
}

// replaced reports whether a head is of a life of the core that a restore put an end to before this row.
func (w *walk) replaced(h *Head, e *api.AuditEntry) bool {
	for seq, epoch := range w.lives {
		if seq <= e.Seq && h.Epoch < epoch {
			return true
		}
	}
	return e.Action == ActionRestored && h.Epoch < e.Epoch
}

// end holds the end of the log against the row that says where it is, and the heads.
func (w *walk) end(ctx context.Context, tx *database.Tx) error {
	seq, hash, err := End(ctx, tx)
	if err != nil {
		return err
	}
	switch {
	case seq > w.seq: // check: end of rows
		w.report.fault("audit", fmt.Sprintf("rows %d to %d", w.seq+1, seq), "they are missing: the log was cut off at its end")
	case seq != w.seq || !bytes.Equal(hash, w.hash):
		w.report.fault("audit_head", "", "it says that row %d is the last; row %d is", seq, w.seq)
	}
	var last *Head
	for _, h := range w.heads {
		if h.Seq > w.seq && !w.replaced(h, &api.AuditEntry{Seq: w.seq}) && (last == nil || h.Seq > last.Seq) {
			last = h
		}
	}
	if last != nil { // check: heads beyond the end
		w.report.fault("audit", fmt.Sprintf("rows %d to %d", w.seq+1, last.Seq), "they are missing: a head of %s was signed over them", last.Time.Format(time.RFC3339))
	}
	if len(w.heads) == 0 {
		w.report.Notes = append(w.report.Notes, "there is no head: rows may have been cut off at the end without a trace")
	}
	return nil
}

// objects holds what there is against what the rows say.
func (w *walk) objects(key Key, objects []*api.Object) {
	there := map[string]bool{}
	for _, o := range objects {
		id, row := o.Kind+" "+o.Metadata.UID, o.Kind+" "+o.Metadata.Tenant+"/"+o.Metadata.Name
		there[id] = true
		w.report.Objects++
		want, ok := w.known[id]
		switch {
		case !ok: // check: inserted objects
			w.report.fault("objects", row, "no row of the log tells that it was made: it was put there behind the core's back")
		case !bytes.Equal(want.digest, key.digestObject(o)): // check: altered objects
			w.report.fault("objects", row, "it is not what was written last: it was changed behind the core's back")
		}
	}
	w.missing("objects", there, func(kind string) bool { return kind != store.KindToken })
}

// tokens is objects, for tokens.
func (w *walk) tokens(ctx context.Context, tx *database.Tx, key Key) error {
	there := map[string]bool{}
	rows, err := tx.QueryContext(ctx, "SELECT id, hash, name, account, expires FROM tokens ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var t store.AuditedToken
		if err := rows.Scan(&t.ID, &t.Hash, &t.Name, &t.Account, &t.Expires); err != nil {
			return err
		}
		id := store.KindToken + " " + t.ID
		there[id] = true
		w.report.Tokens++
		want, ok := w.known[id]
		switch {
		case !ok: // check: inserted tokens
			w.report.fault("tokens", t.ID, "no row of the log tells that it was made: it was put there behind the core's back")
		case !bytes.Equal(want.digest, key.digestToken(t)): // check: altered tokens
			w.report.fault("tokens", t.ID, "it is not what was written: it was changed behind the core's back")
		}
	}
	w.missing("tokens", there, func(kind string) bool { return kind == store.KindToken })
	return rows.Err()
}

// missing names what the rows know and nobody finds.
func (w *walk) missing(table string, there map[string]bool, of func(kind string) bool) {
	var gone []string
	for id, s := range w.known {
		if kind, uid, _ := strings.Cut(id, " "); of(kind) && !there[id] { // check: deleted rows
			gone = append(gone, kind+" "+s.name+" (uid "+uid+")")
		}
	}
	slices.Sort(gone)
	for _, row := range gone {
		w.report.fault(table, row, "it is gone, and no row of the log tells that it was deleted")
	}
}

// DigestToken is a keyed digest of a token.
func (c *Chain) DigestToken(t store.AuditedToken) []byte { return c.key.digestToken(t) }

func (k Key) digestToken(t store.AuditedToken) []byte {
	return k.mac("token", t.ID, t.Name, t.Account, t.Hash, t.Expires)
}

// The actions of rows that the log itself knows.
const (
	ActionAdopted  = "adopt"   // it was there before the log was
	ActionRestored = "restore" // the core was made from a backup
	ActionCut      = "cut"     // older rows were exported and taken out; the last was Count, with the hash Old
)

func scan(rows *sql.Rows) (*api.AuditEntry, error) {
	e := &api.AuditEntry{}
	var epoch, ms int64
	err := rows.Scan(&e.Seq, &epoch, &ms, &e.Tenant, &e.TenantName, &e.Actor, &e.Name, &e.How, &e.Source, &e.Request, &e.Action, &e.Kind, &e.Object, &e.UID, &e.Old, &e.New, &e.Outcome, &e.Message, &e.Count, &e.Hash)
	e.Epoch, e.Time = uint64(epoch), time.UnixMilli(ms).UTC()
	return e, err
}

// ErrFaults is how a report with faults ends a command.
var ErrFaults = errors.New("the audit log and the database do not fit")
