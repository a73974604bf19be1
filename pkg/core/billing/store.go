package billing

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Migrate brings this room's tables up to date.
func Migrate(ctx context.Context, db *database.DB) error {
	return db.Migrate(ctx, migrations, "billing_db_version")
}

// Issued is a document as it was issued: the very bytes.
type Issued struct {
	Number, Kind, Tenant, Name, Period, Refers string
	From, To                                   time.Time
	Seq                                        int64
	JSON, CSV, FOCUS, PDF                      []byte
}

// digest names all bytes of a document.
func (d *Issued) digest() string {
	parts := make([]string, 0, 4)
	for _, b := range [][]byte{d.JSON, d.CSV, d.FOCUS, d.PDF} {
		parts = append(parts, digestOf(b))
	}
	return digestOf([]byte(strings.Join(parts, "\n")))
}

// write runs one transaction that changes something.
func (r *Room) write(ctx context.Context, f func(tx *database.Tx) error) error {
	if err := r.db.Write(ctx, f); err != nil {
		return err
	}
	return r.written()
}

// written is called after each change that is on the disk: tests end a run there.
func (r *Room) written() error {
	if r.cfg.Written != nil {
		return r.cfg.Written()
	}
	return nil
}

const documentColumns = `number, kind, tenant, name, period, began, ended, refers, seq`

func scanDocument(row interface{ Scan(...any) error }, more ...any) (*Issued, error) {
	d := &Issued{}
	var from, to int64
	err := row.Scan(append([]any{&d.Number, &d.Kind, &d.Tenant, &d.Name, &d.Period, &from, &to, &d.Refers, &d.Seq}, more...)...)
	d.From, d.To = time.Unix(from, 0).UTC(), time.Unix(to, 0).UTC()
	return d, err
}

// Documents lists what was issued to a tenant, by its uid, or to all for "", oldest first;
// with the JSON, without the other forms.
func (r *Room) Documents(ctx context.Context, tenant string) ([]*Issued, error) {
	return documents(ctx, r.db, tenant)
}

func documents(ctx context.Context, q database.Querier, tenant string) (out []*Issued, err error) {
	where, args := "", []any{}
	if tenant != "" {
		where, args = " WHERE tenant = ?", []any{tenant}
	}
	rows, err := q.QueryContext(ctx, `SELECT `+documentColumns+`, json FROM bill_documents`+where+` ORDER BY seq`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		d, err := scanDocument(rows, &b)
		if err != nil {
			return nil, err
		}
		d.JSON = b
		out = append(out, d)
	}
	return out, rows.Err()
}

// Document reads one by its number, with all its forms.
func (r *Room) Document(ctx context.Context, number string) (*Issued, error) {
	return document(ctx, r.db, number)
}

func document(ctx context.Context, q database.Querier, number string) (*Issued, error) {
	var b [4][]byte
	d, err := scanDocument(q.QueryRowContext(ctx, `SELECT `+documentColumns+`, json, csv, focus, pdf FROM bill_documents WHERE number = ?`, number), &b[0], &b[1], &b[2], &b[3])
	if errors.Is(err, sql.ErrNoRows) {
		return nil, NoInvoice(number)
	}
	d.JSON, d.CSV, d.FOCUS, d.PDF = b[0], b[1], b[2], b[3]
	return d, err
}

// NoInvoice is the error of a document that is not there.
func NoInvoice(number string) error {
	return &api.Error{Code: api.NotFound, Message: "there is no invoice " + number, Remedy: "see `edgectl get invoices`"}
}

// standing are the documents of a list that count: invoices that were not credited whole, and
// the notes of those that were only in part. Credited tells of each note's invoice.
func standing(docs []*Document) (out []*Document) {
	gone := map[string]bool{}
	for _, d := range docs {
		if d.Kind == KindCreditNote && d.whole(docs) {
			gone[d.Credits], gone[d.Number] = true, true
		}
	}
	for _, d := range docs {
		if !gone[d.Number] {
			out = append(out, d)
		}
	}
	return out
}

// whole reports whether a credit note takes all of its invoice back.
func (d *Document) whole(docs []*Document) bool {
	for _, o := range docs {
		if o.Number == d.Credits {
			return len(d.Lines) == len(o.Lines) && d.Gross == o.Gross.neg() && len(d.Lines) > 0 && d.Lines[0].Kind != LineCredit
		}
	}
	return false
}

// run is what the issue of a period was begun with.
type run struct {
	attempt       int64
	asOf          time.Time
	issued, actor string
	number        string
}

// runOf reads the newest attempt of a period; attempt 0 when there is none.
func runOf(ctx context.Context, q database.Querier, tenant, period string) (run, error) {
	var x run
	var asOf int64
	err := q.QueryRowContext(ctx, `SELECT attempt, as_of, issued, actor, number FROM bill_runs WHERE tenant = ? AND period = ? ORDER BY attempt DESC LIMIT 1`, tenant, period).
		Scan(&x.attempt, &asOf, &x.issued, &x.actor, &x.number)
	if errors.Is(err, sql.ErrNoRows) {
		return run{}, nil
	}
	x.asOf = time.UnixMilli(asOf).UTC()
	return x, err
}

// decisions reads what was decided about a period, oldest first.
func decisions(ctx context.Context, q database.Querier, tenant, period string) (out []Decision, err error) {
	rows, err := q.QueryContext(ctx, `SELECT body FROM bill_decisions WHERE tenant = ? AND period = ? ORDER BY seq`, tenant, period)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		var d Decision
		if err := rows.Scan(&b); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &d); err != nil {
			return nil, fmt.Errorf("a decision about %s cannot be read: %w", period, err)
		}
		out = append(out, d)
	}
	return out, rows.Err()
}

// putTerms keeps terms by their digest. It may be repeated.
func putTerms(ctx context.Context, tx *database.Tx, t *Terms) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO bill_terms (digest, body) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING`, t.Digest(), b)
	return err
}

func terms(ctx context.Context, q database.Querier, digest string) (*Terms, error) {
	var b []byte
	if err := q.QueryRowContext(ctx, `SELECT body FROM bill_terms WHERE digest = ?`, digest).Scan(&b); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return nil, api.Errorf(api.NotFound, "the terms %s are missing", digest)
		}
		return nil, err
	}
	t := &Terms{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("the terms %s cannot be read: %w", digest, err)
	}
	return t, nil
}
