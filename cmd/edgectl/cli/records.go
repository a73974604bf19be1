package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

func outputFlag(c *cobra.Command, o *string, known string) {
	c.Flags().StringVarP(o, "output", "o", "table", known)
}

func (a *app) eventsCommand() *cobra.Command {
	var limit int
	var watch, tenants bool
	var output string
	c := &cobra.Command{
		Use: "events [DEVICE]", Short: "Show what happened, the newest at the bottom", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if len(args) == 1 {
				q.Set("device", args[0])
			}
			if tenants && len(args) == 1 {
				return &api.Error{Code: api.Invalid, Message: "a device is of one tenant", Remedy: "leave out -A, or DEVICE"}
			}
			if tenants {
				q.Set("tenant", "*")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			if watch {
				return a.watchEvents(cmd.Context(), cl, q, output)
			}
			events, err := listEvents(cmd.Context(), cl, q)
			if err != nil {
				return err
			}
			switch output {
			case "json", "yaml":
				return a.printValue(map[string]any{"items": events}, output)
			case "table":
				if len(events) == 0 {
					fmt.Fprintln(a.Err, "nothing happened yet")
					return nil
				}
				a.printEvents(events)
				return nil
			}
			return badOutput(output, "table, json or yaml")
		},
	}
	c.Flags().IntVar(&limit, "limit", 100, "the newest so many, at most 1000")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with those that come")
	c.Flags().BoolVarP(&tenants, "all-tenants", "A", false, "of every tenant")
	outputFlag(c, &output, "table, json or yaml")
	return c
}

// watchEvents shows events as they come, till interrupted. When the connection breaks it
// is made again; what was shown is not shown again.
func (a *app) watchEvents(ctx context.Context, cl *client.Client, q url.Values, output string) error {
	if output != "table" && output != "json" {
		return badOutput(output, "table, or json: one event a line")
	}
	shown := map[eventEntry]bool{}
	for {
		err := cl.WatchEvents(ctx, q, func(raw []byte) error {
			var e eventEntry
			if err := json.Unmarshal(raw, &e); err != nil || shown[e] {
				return err
			}
			if len(shown) > 10_000 { // the core sends again 1000 at most
				clear(shown)
			}
			shown[e] = true
			if output == "json" {
				return json.NewEncoder(a.Out).Encode(e)
			}
			a.printEventLine(e)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if api.CodeOf(err) != api.Unavailable || len(shown) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
	}
}

// usageReport is what the core's ledger counted of one device.
type usageReport struct {
	Device     string       `json:"device"`
	SpoolEpoch uint64       `json:"spoolEpoch"`
	Acked      uint64       `json:"acked"`
	Totals     []usageTotal `json:"totals"`
}

type usageTotal struct {
	App               string `json:"app"`
	Service           string `json:"service"`
	RunMillis         uint64 `json:"runMillis"`
	CPUMicros         uint64 `json:"cpuMicros"`
	MemoryByteSeconds uint64 `json:"memoryByteSeconds"`
	RxBytes           uint64 `json:"rxBytes"`
	TxBytes           uint64 `json:"txBytes"`
	// Accelerator is what it used of cards and slices that it held.
	Accelerator api.AcceleratorUse `json:"accelerator,omitzero"`
}

func (a *app) usageCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "usage DEVICE", Short: "Show what a device's apps used, each record counted once", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/usage", url.Values{"device": {args[0]}}, nil, &raw); err != nil {
				return err
			}
			if output == "json" || output == "yaml" {
				return a.printValue(raw, output)
			}
			if output != "table" {
				return badOutput(output, "table, json or yaml")
			}
			var u usageReport
			if err := json.Unmarshal(raw, &u); err != nil {
				return &api.Error{Code: api.Internal, Message: "the answer cannot be read", Remedy: "compare `edgectl version` of both sides", Err: err}
			}
			a.printUsage(u)
			return nil
		},
	}
	outputFlag(c, &output, "table, json or yaml")
	return c
}

func (a *app) printUsage(u usageReport) {
	t := &table{header: []string{"APP/SERVICE", "RAN", "CPU", "MEMORY", "RECEIVED", "SENT"}}
	for _, s := range u.Totals {
		average := "-"
		if s.RunMillis > 0 {
			average = "avg " + bytesText(uint64(float64(s.MemoryByteSeconds)/(float64(s.RunMillis)/1000)))
		}
		t.rows = append(t.rows, []string{s.App + "/" + s.Service, (time.Duration(s.RunMillis) * time.Millisecond).Round(time.Second).String(),
			(time.Duration(s.CPUMicros) * time.Microsecond).Round(time.Millisecond).String(), average, bytesText(s.RxBytes), bytesText(s.TxBytes)})
	}
	t.write(a.Out, true)
	if cards := cardUse(u.Totals); len(cards.rows) > 0 {
		fmt.Fprintln(a.Out)
		cards.write(a.Out, true)
		fmt.Fprintln(a.Out)
	}
	fmt.Fprintf(a.Out, "counted up to record %d of spool %d\n", u.Acked, u.SpoolEpoch)
}

// cardUse tells of the services that held cards or slices: for how long, times the compute
// slices of each, with how much of their memory in use on average, how much of the time
// something ran where that is told, and their part of what the cards drew.
func cardUse(totals []usageTotal) *table {
	t := &table{header: []string{"APP/SERVICE", "HELD", "SLICE TIME", "CARD MEMORY", "BUSY", "ENERGY"}}
	millis := func(n uint64) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, s := range totals {
		u := s.Accelerator
		if u.HeldMillis == 0 {
			continue
		}
		busy := "unknown"
		if told := u.HeldMillis - min(u.UnknownMillis, u.HeldMillis); told > 0 {
			busy = fmt.Sprintf("%.0f %%", 100*float64(u.BusyMillis)/float64(told))
		}
		t.rows = append(t.rows, []string{s.App + "/" + s.Service, millis(u.HeldMillis).Round(time.Second).String(), millis(u.SliceMillis).Round(time.Second).String(),
			"avg " + bytesText(uint64(float64(u.MemoryMiBSeconds)/(float64(u.HeldMillis)/1000)*(1<<20))), busy, fmt.Sprintf("%.1f kJ", float64(u.EnergyMillijoules)/1e6)})
	}
	return t
}

// recordEntry is one record as the core's ledger holds it.
type recordEntry struct {
	Seq   uint64     `json:"seq"`
	Last  uint64     `json:"last,omitempty"`
	Epoch uint64     `json:"epoch"`
	Kind  string     `json:"kind"`
	Time  int64      `json:"time,omitempty"`
	Usage *api.Usage `json:"usage,omitempty"`
	Event *api.Event `json:"event,omitempty"`
	KPI   *api.KPI   `json:"kpi,omitempty"`
	Data  []byte     `json:"data,omitempty"`
}

func (a *app) recordsCommand() *cobra.Command {
	var after uint64
	var limit int
	var output string
	c := &cobra.Command{
		Use: "records DEVICE", Short: "List the numbered records that a device sent", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if output != "table" && output != "json" {
				return badOutput(output, "table or json (one record a line)")
			}
			t := &table{header: []string{"SEQ", "KIND", "SPOOL", "TAKEN", "CONTENT"}}
			header := true
			for left := limit; left > 0; {
				q := url.Values{"device": {args[0]}, "after": {strconv.FormatUint(after, 10)}, "limit": {strconv.Itoa(min(left, 1000))}}
				var page struct {
					Items []recordEntry `json:"items"`
					Next  uint64        `json:"next"`
				}
				if err := cl.Do(cmd.Context(), http.MethodGet, "/api/v1/records", q, nil, &page); err != nil {
					return err
				}
				for _, r := range page.Items {
					if output == "json" {
						if err := json.NewEncoder(a.Out).Encode(r); err != nil {
							return err
						}
						continue
					}
					t.rows = append(t.rows, recordRow(r))
				}
				if output == "table" {
					t.write(a.Out, header)
					header = false
				}
				left -= len(page.Items)
				if page.Next == 0 || len(page.Items) == 0 {
					break
				}
				after = page.Next
			}
			return nil
		},
	}
	c.Flags().Uint64Var(&after, "after", 0, "records with a higher number")
	c.Flags().IntVar(&limit, "limit", 500, "so many at most")
	outputFlag(c, &output, "table, or json: one record a line")
	return c
}

func recordRow(r recordEntry) []string {
	seq := strconv.FormatUint(r.Seq, 10)
	if r.Last > r.Seq {
		seq += "-" + strconv.FormatUint(r.Last, 10)
	}
	content := ""
	switch {
	case r.Usage != nil:
		content = fmt.Sprintf("%s, %d services", (time.Duration(r.Usage.To-r.Usage.From) * time.Millisecond).Round(time.Second), len(r.Usage.Uses))
	case r.Event != nil:
		content = clip(r.Event.Name+" "+r.Event.Subject+" "+r.Event.Message, 100)
	case r.KPI != nil:
		k := r.KPI
		content = fmt.Sprintf("%s %d to %d %s, mean %d, rms %d, of %d readings", clip(k.Name, 40), k.Min, k.Max, clip(k.Unit, 10), k.Mean, k.RMS, k.Count)
		if k.Missing > 0 {
			content += fmt.Sprintf(", %d missing", k.Missing)
		}
	default:
		content = fmt.Sprintf("%d bytes", len(r.Data))
	}
	taken := "-"
	if r.Time > 0 {
		taken = time.UnixMilli(r.Time).Local().Format("2006-01-02 15:04:05")
	}
	return []string{seq, r.Kind, strconv.FormatUint(r.Epoch, 10), taken, content}
}
