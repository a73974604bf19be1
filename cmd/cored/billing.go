package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"text/tabwriter"
	"time"
	_ "time/tzdata" // zones of tenants are the same on every machine

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/billing"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/intake"
)

// billSettle is how long usage may take from being received to being seen by an invoice.
const billSettle = time.Minute

// budgetCheck is how often budgets are looked at.
const budgetCheck = 5 * time.Minute

func (d data) billingHeads() string { return d.path("billing.heads") }

// openBilling opens the room over the ledger's database.
func (d data) openBilling(ctx context.Context, cfg billing.Config, in *intake.Store, authority *ca.CA) (*billing.Room, func() error, error) {
	place, err := d.place("ledger.db")
	if err != nil {
		return nil, nil, err
	}
	db, err := database.Open(ctx, database.Config{Place: place, Schema: intake.Schema})
	if err != nil {
		return nil, nil, err
	}
	if err := billing.Migrate(ctx, db); err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	cfg.DB, cfg.Usage, cfg.Heads, cfg.Now, cfg.Settle = db, usageOf{cfg.Store, openUsage(in)}, &headFile{d.billingHeads(), authority}, time.Now, billSettle
	return billing.New(cfg), db.Close, nil
}

// headFile keeps heads of the ledger in a file, a line each, signed with the core's key.
type headFile struct {
	path string
	ca   *ca.CA
}

type headLine struct {
	billing.Head
	Signature string `json:"signature"`
}

func headDigest(h billing.Head) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "tributary-billing-head/1 %d %s", h.Seq, h.Hash))
	return sum[:]
}

// Add implements billing.Heads.
func (f *headFile) Add(ctx context.Context, h billing.Head) (err error) {
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil { // another process may add, too
		return err
	}
	all, err := f.All(ctx)
	if err != nil {
		return err
	}
	if n := len(all); n > 0 && all[n-1].Seq >= h.Seq {
		return nil
	}
	key, _ := f.ca.Signer()
	sig, err := ecdsa.SignASN1(rand.Reader, key, headDigest(h))
	if err != nil {
		return err
	}
	line, err := json.Marshal(headLine{h, base64.StdEncoding.EncodeToString(sig)})
	if err != nil {
		return err
	}
	if info, err := file.Stat(); err != nil {
		return err
	} else if whole := f.whole(); whole < info.Size() { // a line that a power cut tore
		if err := file.Truncate(whole); err != nil {
			return err
		}
	}
	if _, err := file.Write(append(line, '\n')); err != nil {
		return err
	}
	return file.Sync()
}

// whole is up to where the file has whole lines.
func (f *headFile) whole() int64 {
	b, err := os.ReadFile(f.path)
	if err != nil {
		return 0
	}
	return int64(bytes.LastIndexByte(b, '\n') + 1)
}

// All implements billing.Heads.
func (f *headFile) All(context.Context) (out []billing.Head, err error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		var l headLine
		bad := json.Unmarshal(lines.Bytes(), &l)
		sig, err := base64.StdEncoding.DecodeString(l.Signature)
		if bad != nil || err != nil || !f.signed(l.Head, sig) {
			return out, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("line %d of %s is not signed by this core", n, f.path), Remedy: "compare it with a copy that was kept elsewhere"}
		}
		out = append(out, l.Head)
	}
	return out, lines.Err()
}

// signed reports whether one of the core's signers, of now or before, signed a head.
func (f *headFile) signed(h billing.Head, sig []byte) bool {
	for _, cert := range f.ca.Trust().Signers {
		if key, ok := cert.PublicKey.(*ecdsa.PublicKey); ok && ecdsa.VerifyASN1(key, headDigest(h), sig) {
			return true
		}
	}
	return false
}

// checkBudgets looks at budgets now and then.
func (c *core) checkBudgets(ctx context.Context) error {
	tick := time.NewTicker(budgetCheck)
	defer tick.Stop()
	for {
		if err := c.billing.CheckBudgets(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("budgets cannot be checked; tried again soon", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// withBilling opens billing for a command, beside a core that runs or not.
func withBilling(ctx context.Context, d data, f func(*billing.Room) error) (err error) {
	if err := d.exists(); err != nil {
		return err
	}
	objects, err := d.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, objects.Close()) }()
	epoch, err := objects.Epoch(ctx)
	if err != nil {
		return err
	}
	authority, err := ca.Open(d.ca(), ca.Options{})
	if err != nil {
		return err
	}
	in, err := d.openLedger(ctx, intake.Config{Now: time.Now})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	fonts, err := billing.LoadFonts("")
	if err != nil {
		return err
	}
	room, end, err := d.openBilling(ctx, billing.Config{Store: objects, Epoch: epoch, Fonts: fonts}, in, authority)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	return f(room)
}

func billingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "billing", Short: "Invoices: make drafts, issue, verify (beside a core that runs, or without)"}
	cmd.AddCommand(billingRun("run", "Show what the invoices of a period would be", false), billingRun("close", "Issue the invoices of a period; those of before stay as they are", true), billingVerify())
	return cmd
}

func billingRun(use, short string, final bool) *cobra.Command {
	var dir string
	var tenants []string
	cmd := &cobra.Command{Use: use + " PERIOD", Short: short, Args: cobra.ExactArgs(1), Long: short + ".\n\nA period is a month (2026-11), a day (2026-11-23), or an hour of UTC (2026-11-23T14Z).",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withBilling(cmd.Context(), data(dir), func(r *billing.Room) error {
				out, err := r.Run(cmd.Context(), tenants, args[0], "cored billing", final)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "TENANT\tPERIOD\tNUMBER\tNET\tGROSS\tBLOCKED BY")
				blocked := 0
				for _, o := range out {
					row := []string{"-", "-", "-"}
					if d := o.Document; d != nil {
						if row = []string{d.Number, d.Net.String() + " " + d.Currency, d.Gross.String() + " " + d.Currency}; d.Number == "" {
							row[0] = "draft"
						}
					}
					why := "-"
					if n := len(o.Blockers); n > 0 {
						blocked++
						if why = o.Blockers[0].What; n > 1 {
							why += fmt.Sprintf(" (and %d more)", n-1)
						}
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", o.Tenant, o.Period, row[0], row[1], row[2], why)
				}
				if err := w.Flush(); err != nil || !final || blocked == 0 {
					return err
				}
				return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("%d invoices are blocked", blocked), Remedy: "see `edgectl billing draft PERIOD --tenant T`, and decide"}
			})
		}}
	cmd.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	cmd.Flags().StringSliceVar(&tenants, "tenant", nil, "of these tenants (default: all that have a plan)")
	return cmd
}

func billingVerify() *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: "verify", Short: "Make every invoice again from usage and price versions, check the ledger's chain, and name any difference", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withBilling(cmd.Context(), data(dir), func(r *billing.Room) error {
				v, err := r.Verify(cmd.Context())
				if err != nil {
					return err
				}
				for _, d := range v.Differences {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", d.Where, d.What)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d entries, %d documents, of which %d were made again, %d heads kept outside: %d differences\n", v.Entries, v.Documents, v.Derived, v.Heads, len(v.Differences))
				if n := len(v.Differences); n > 0 {
					return &api.Error{Code: api.Conflict, Message: fmt.Sprintf("the ledger has %d differences", n), Remedy: "compare with a backup; an invoice that was wrong is credited, not changed"}
				}
				return nil
			})
		}}
	cmd.Flags().StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	return cmd
}
