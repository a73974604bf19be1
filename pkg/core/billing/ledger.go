package billing

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
)

// Posting is a debit (positive) or a credit (negative) of an account.
type Posting struct {
	Account  string `json:"account"`
	Currency string `json:"currency"`
	Minor    int64  `json:"minor"`
}

// Entry is one entry of the journal. Its postings sum up to nothing in each currency.
type Entry struct {
	Seq      int64     `json:"seq"`
	At       int64     `json:"at"`
	Kind     string    `json:"kind"`
	Tenant   string    `json:"tenant"`
	Ref      string    `json:"ref"`
	Digest   string    `json:"digest"`
	Postings []Posting `json:"postings"`
	Prev     string    `json:"prev"`
	Hash     string    `json:"-"`
}

// Head is the newest entry of the journal: who keeps it elsewhere notices when entries vanish.
type Head struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"`
}

// Heads keeps heads outside the database.
type Heads interface {
	// Add keeps a head. It may be repeated, and called by several processes.
	Add(ctx context.Context, h Head) error
	// All gives those that were kept, oldest first; an error when one of them is not ours.
	All(ctx context.Context) ([]Head, error)
}

// The kinds of entries.
const (
	entryInvoice  = "invoice"
	entryCredit   = "credit-note"
	entryDecision = "decision"
	entryBudget   = "budget"
)

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func (e *Entry) sum() string {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	return digestOf(b)
}

// balanced reports whether debits and credits agree in each currency.
func (e *Entry) balanced() bool {
	sums := map[string]int64{}
	for _, p := range e.Postings {
		sums[p.Currency] += p.Minor
	}
	for _, n := range sums {
		if n != 0 {
			return false
		}
	}
	return true
}

// next takes the next number of a series, within the transaction that uses it: nobody else
// gets it, and it is given back when the transaction fails.
func next(ctx context.Context, tx *database.Tx, series string, epoch uint64) (n int64, err error) {
	if _, err := tx.ExecContext(ctx, `INSERT INTO bill_series (series, epoch, last) VALUES (?, ?, 0) ON CONFLICT (series, epoch) DO NOTHING`, series, int64(epoch)); err != nil {
		return 0, err
	}
	if err := tx.QueryRowContext(ctx, `SELECT last FROM bill_series WHERE series = ? AND epoch = ?`+tx.Dialect().ForUpdate(), series, int64(epoch)).Scan(&n); err != nil {
		return 0, err
	}
	n++
	_, err = tx.ExecContext(ctx, `UPDATE bill_series SET last = ? WHERE series = ? AND epoch = ?`, n, series, int64(epoch))
	return n, err
}

// append enters an entry at the end of the journal.
func (r *Room) append(ctx context.Context, tx *database.Tx, e *Entry) (err error) {
	if !e.balanced() {
		return api.Errorf(api.Internal, "the postings of %s %s do not balance", e.Kind, e.Ref)
	}
	if e.Seq, err = next(ctx, tx, "journal", 0); err != nil {
		return err
	}
	e.At = r.cfg.Now().UnixMilli()
	err = tx.QueryRowContext(ctx, `SELECT hash FROM bill_journal WHERE seq = ?`, e.Seq-1).Scan(&e.Prev)
	if err != nil && !(errors.Is(err, sql.ErrNoRows) && e.Seq == 1) {
		return fmt.Errorf("the journal has no entry %d: %w", e.Seq-1, err)
	}
	e.Hash = e.sum()
	if _, err := tx.ExecContext(ctx, `INSERT INTO bill_journal (seq, at, kind, tenant, ref, digest, prev, hash) VALUES (?,?,?,?,?,?,?,?)`, e.Seq, e.At, e.Kind, e.Tenant, e.Ref, e.Digest, e.Prev, e.Hash); err != nil {
		return err
	}
	for i, p := range e.Postings {
		if _, err := tx.ExecContext(ctx, `INSERT INTO bill_postings (seq, n, account, currency, minor) VALUES (?,?,?,?,?)`, e.Seq, i, p.Account, p.Currency, p.Minor); err != nil {
			return err
		}
	}
	return nil
}

// Journal lists entries after a number, oldest first. A limit of 0 is none.
func (r *Room) Journal(ctx context.Context, after int64, limit int) (out []Entry, err error) {
	err = r.db.Read(ctx, func(tx *database.Tx) error {
		out, err = journal(ctx, tx, after, limit)
		return err
	})
	return out, err
}

func journal(ctx context.Context, q database.Querier, after int64, limit int) (out []Entry, err error) {
	text, args := `SELECT seq, at, kind, tenant, ref, digest, prev, hash FROM bill_journal WHERE seq > ? ORDER BY seq`, []any{after}
	if limit > 0 {
		text, args = text+` LIMIT ?`, append(args, limit)
	}
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var e Entry
		if err := rows.Scan(&e.Seq, &e.At, &e.Kind, &e.Tenant, &e.Ref, &e.Digest, &e.Prev, &e.Hash); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil || len(out) == 0 {
		return out, err
	}
	return out, fillPostings(ctx, q, out)
}

func fillPostings(ctx context.Context, q database.Querier, entries []Entry) error {
	rows, err := q.QueryContext(ctx, `SELECT seq, account, currency, minor FROM bill_postings WHERE seq >= ? AND seq <= ? ORDER BY seq, n`, entries[0].Seq, entries[len(entries)-1].Seq)
	if err != nil {
		return err
	}
	defer rows.Close()
	at := map[int64]*Entry{}
	for i := range entries {
		at[entries[i].Seq] = &entries[i]
	}
	for rows.Next() {
		var seq int64
		var p Posting
		if err := rows.Scan(&seq, &p.Account, &p.Currency, &p.Minor); err != nil {
			return err
		}
		if e := at[seq]; e != nil {
			e.Postings = append(e.Postings, p)
		}
	}
	return rows.Err()
}

// keepHead tells those outside of the newest entry. What a killed run did not tell is told by the next.
func (r *Room) keepHead(ctx context.Context) error {
	var h Head
	err := r.db.QueryRowContext(ctx, `SELECT seq, hash FROM bill_journal ORDER BY seq DESC LIMIT 1`).Scan(&h.Seq, &h.Hash)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.cfg.Heads.Add(ctx, h); err != nil {
		return fmt.Errorf("keep the head of the ledger outside: %w", err)
	}
	return r.written()
}

// Balances sums up the accounts.
func (r *Room) Balances(ctx context.Context) (out []Posting, err error) {
	rows, err := r.db.QueryContext(ctx, `SELECT account, currency, CAST(sum(minor) AS BIGINT) FROM bill_postings GROUP BY account, currency ORDER BY account, currency`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p Posting
		if err := rows.Scan(&p.Account, &p.Currency, &p.Minor); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// postingsOf are those of a document: who owes, what was earned, and what goes to the tax office.
func postingsOf(d *Document) []Posting {
	out := []Posting{{"receivable/" + d.Buyer.UID, d.Currency, d.Gross.Minor}, {"revenue/" + d.Buyer.UID, d.Currency, -d.Net.Minor}}
	for _, t := range d.Taxes {
		if t.Tax.Minor != 0 {
			out = append(out, Posting{"tax/" + t.Name + "/" + t.Percent, d.Currency, -t.Tax.Minor})
		}
	}
	return out
}

// today is the day of a time in a zone.
func today(at time.Time, zone *time.Location) string { return at.In(zone).Format(time.DateOnly) }
