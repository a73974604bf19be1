package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

func (a *app) auditCommand() *cobra.Command {
	var actor, action, kind, name, outcome, output string
	var since time.Duration
	var limit int
	var tenants bool
	c := &cobra.Command{Use: "audit", Short: "Show who did what, the newest at the bottom", Args: cobra.NoArgs,
		Long: `Show who did what, the newest at the bottom.

Changes, refusals, tokens made and forgotten, and what was run on devices, in tenants
that you administrate. That none of it was changed is proven on the core's machine,
by "cored audit verify".`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			for key, v := range map[string]string{"actor": actor, "action": action, "kind": kind, "name": name, "outcome": outcome} {
				if v != "" {
					q.Set(key, v)
				}
			}
			if tenants {
				q.Set("tenant", "*")
			}
			if since > 0 {
				q.Set("from", a.now().Add(-since).UTC().Format(time.RFC3339))
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			rows := []api.AuditEntry{}
			for len(rows) < limit {
				var page struct {
					Items []api.AuditEntry
					Next  int64
				}
				q.Set("limit", strconv.Itoa(min(limit-len(rows), 1000)))
				if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/audit", q, nil, &page); err != nil {
					return err
				}
				if rows = append(rows, page.Items...); page.Next == 0 {
					break
				}
				q.Set("before", strconv.FormatInt(page.Next, 10))
			}
			switch output {
			case "json", "yaml":
				return a.printValue(map[string]any{"items": rows}, output)
			case "table":
				return a.printAudit(rows)
			}
			return badOutput(output, "table, json or yaml")
		}}
	f := c.Flags()
	f.StringVar(&actor, "actor", "", "of this person or account, by name or uid")
	f.StringVar(&action, "action", "", "of this action: create, update, delete, exec, authenticate …")
	f.StringVar(&kind, "kind", "", "done to things of this kind")
	f.StringVar(&name, "name", "", "done to things of this name")
	f.StringVar(&outcome, "outcome", "", "done, refused or failed")
	f.DurationVar(&since, "since", 0, "not older than this")
	f.IntVar(&limit, "limit", 100, "the newest so many")
	f.BoolVarP(&tenants, "all-tenants", "A", false, "of every tenant")
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) printAudit(rows []api.AuditEntry) error {
	if len(rows) == 0 {
		fmt.Fprintln(a.Err, "the audit log has no such row")
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SEQ\tTIME\tTENANT\tWHO\tFROM\tACTION\tWHAT\tOUTCOME\tMESSAGE")
	for i := len(rows) - 1; i >= 0; i-- {
		e := rows[i]
		outcome := e.Outcome
		if e.Count > 1 {
			outcome += fmt.Sprintf(" ×%d", e.Count)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, e.Time.Local().Format(time.DateTime), printable(e.TenantName), orDash(printable(e.Name)), orDash(e.Source), printable(e.Action),
			orDash(printable(strings.TrimSpace(e.Kind+" "+e.Object))), outcome, orDash(printable(clip(e.Message, 80))))
	}
	return w.Flush()
}
