package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/store"
)

// openAuditKey reads the key of the audit log, and makes one for a database whose log has no row.
func (d data) openAuditKey(ctx context.Context, place string) (audit.Key, error) {
	key, err := audit.OpenKey(d.auditKey())
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	db, err := database.Open(ctx, database.Config{Place: place, Schema: store.Schema})
	if err != nil {
		return key, err
	}
	err = audit.Migrate(ctx, db)
	var seq int64
	if err == nil {
		seq, _, err = audit.End(ctx, db)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return key, err
	}
	if seq > 0 {
		return key, &api.Error{Code: api.NotFound, Message: "the key of the audit log, " + d.auditKey() + ", is missing", Remedy: "put it back from where the database comes from, or restore a backup, which has both"}
	}
	return audit.CreateKey(d.auditKey(), rand.Reader)
}

// openAudit begins to write what changes no object, and the heads of the log.
func (c *core) openAudit(ctx context.Context) error {
	key, err := audit.OpenKey(c.o.data.auditKey())
	if err != nil {
		return err
	}
	chain, db := audit.NewChain(key, time.Now), c.store.Database()
	if c.heads, err = audit.OpenHeads(chain, db, append([]string{c.o.data.heads()}, c.o.auditHeads...)...); err != nil {
		return err
	}
	c.audited = audit.NewNotes(chain, db, c.log)
	c.closers = append(c.closers, func() error {
		return errors.Join(c.audited.Close(), c.heads.Sign(context.Background()), c.heads.Close())
	})
	return c.audited.Note(ctx, api.AuditEntry{Action: "start", Message: "cored " + version})
}

func (c *core) headFailed(err error) {
	c.log.Error("the head of the audit log is not kept; tried again", "err", err)
}

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "The log of who did what"}
	var dir, output string
	var heads []string
	verify := &cobra.Command{Use: "verify", Short: "Prove that neither the log nor what it tells of was changed behind the core's back", Args: cobra.NoArgs,
		Long: `Prove that neither the log nor what it tells of was changed behind the core's back.

Rows are held against each other by their hashes, against the signed heads that are
kept outside of the database, and objects and tokens against the rows. Each place
that does not fit is named, and the exit status is 1.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := data(dir).verifyAudit(cmd.Context(), heads)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if output == "json" {
				err = json.NewEncoder(out).Encode(r)
			} else {
				for _, f := range r.Faults {
					fmt.Fprintln(out, f)
				}
				for _, n := range r.Notes {
					fmt.Fprintln(out, "note:", n)
				}
				fmt.Fprintf(out, "%d rows, %d heads, %d objects, %d tokens: %d faults\n", r.Rows, r.Heads, r.Objects, r.Tokens, len(r.Faults))
			}
			if err == nil && len(r.Faults) > 0 {
				err = audit.ErrFaults
			}
			return err
		}}
	f := verify.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	f.StringArrayVar(&heads, "audit-heads", nil, "file of heads beside heads.log in the data folder; may be repeated")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	cmd.AddCommand(verify)
	return cmd
}

// verifyAudit looks at one moment, so that a core that runs may go on.
func (d data) verifyAudit(ctx context.Context, heads []string) (r *audit.Report, err error) {
	if err := d.exists(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(d.auditKey()); err != nil {
		return nil, &api.Error{Code: api.NotFound, Message: "this core has no audit log yet", Remedy: "start it once: `cored run`", Err: err}
	}
	db, err := d.openStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	key, err := audit.OpenKey(d.auditKey())
	if err != nil {
		return nil, err
	}
	return audit.Verify(ctx, db.Database(), key, db.EverythingIn, audit.HeadFiles(append([]string{d.heads()}, heads...)...)...)
}
