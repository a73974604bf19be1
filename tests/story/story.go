// Package story answers: what must happen, step by step, for a person to believe Tributary?
//
// The demo plays it for people; the scenario tests play it with things being killed.
package story

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
)

// Story is one play of the spine on a standing lab.
type Story struct {
	// Lab is a tree in namespaces. A play needs less: Tree stands in its place when the
	// boxes are something else.
	Lab  *lab.Lab
	Tree Tree
	// Root is the top of the checkout.
	Root string
	Out  io.Writer
	// App is the folder of the app's files, below Root; tests/demo/app if empty.
	App string
	// Arches are what the app's images are made for; empty: the machine's own alone.
	Arches []string
	// Bear lists health warnings that boxes have by nature, such as that they lack a TPM.
	Bear []string
	// Joined says by what the boxes enrolled; by join token if empty.
	Joined string
	// Cut names the box whose uplink is cut; agg-1 if empty.
	Cut string
	// Fields are the boxes that run the app.
	Fields []string
	// Wait bounds each wait.
	Wait time.Duration

	began time.Time
	// lost is what boxes had counted on their uplinks when their power was cut: they count
	// from zero after it, and the kernel does not.
	lost map[string]map[string]float64
}

// AppURL is where the demo's app answers on a field box.
const AppURL = "http://127.0.0.1:8080/"

// Say prints a line of progress.
func (s *Story) Say(format string, args ...any) {
	if s.began.IsZero() {
		s.began = time.Now()
	}
	fmt.Fprintf(s.Out, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

func (s *Story) until(ctx context.Context, what string, cond func(context.Context) error) error {
	return lab.Until(ctx, what, s.Wait, cond)
}

// Device is what edgectl tells of a box.
type Device struct {
	api.Object
	Spec   api.DeviceSpec   `json:"spec"`
	Status api.DeviceStatus `json:"status"`
}

// Devices lists the boxes by name.
func (s *Story) Devices(ctx context.Context) (map[string]Device, error) {
	var list struct {
		Items []Device `json:"items"`
	}
	if err := s.tree().GetJSON(ctx, &list, "get", "devices"); err != nil {
		return nil, err
	}
	out := map[string]Device{}
	for _, d := range list.Items {
		out[d.Metadata.Name] = d
	}
	return out, nil
}

// Enrolled waits until every box is in the list with tier, parent, hardware and health, and
// says which are.
func (s *Story) Enrolled(ctx context.Context) error {
	said := map[string]bool{}
	return s.until(ctx, "every box is enrolled and online", func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		var missing error
		for _, name := range s.tree().Names() {
			box := s.tree().Box(name)
			d, ok := devices[name]
			d.Status.Health = slices.DeleteFunc(d.Status.Health, func(w api.Warning) bool { return slices.Contains(s.Bear, w.Name) })
			err := errors.New("not in the list")
			if ok {
				err = whole(d, box, devices)
			}
			switch {
			case err != nil:
				missing = cmp.Or(missing, fmt.Errorf("%s: %w", name, err))
			case !said[name]:
				said[name] = true
				s.Say("%s is a member, below %s", name, box.ParentName())
			}
		}
		return missing
	})
}

// whole says what is still missing of an enrolled device.
func whole(d Device, box Box, all map[string]Device) error {
	st := d.Status
	want := "core"
	tier := 1
	if parent := box.ParentName(); parent != "core" {
		p := all[parent]
		want, tier = p.Status.ID.String(), p.Status.Tier+1
	}
	switch {
	case !st.Online:
		return errors.New("not online")
	case st.Hardware == nil || st.Hardware.CPUs == 0 || st.Hardware.MemoryBytes == 0:
		return errors.New("no hardware reported")
	case st.Parent != want:
		return fmt.Errorf("its parent is %q, not %q", st.Parent, want)
	case st.Tier != tier:
		return fmt.Errorf("its tier is %d, not %d", st.Tier, tier)
	case len(st.Health) > 0:
		return fmt.Errorf("it has warnings: %v", st.Health)
	}
	return nil
}

// Apply hands a file of the demo's app to the core.
func (s *Story) Apply(ctx context.Context, file string) error {
	_, err := s.tree().Edgectl(ctx, "", "apply", "-f", filepath.Join(s.Root, cmp.Or(s.App, "tests/demo/app"), file))
	return err
}

// RunningEverywhere waits until the app is Running at the desired generation on all
// field boxes, as the core sees it.
func (s *Story) RunningEverywhere(ctx context.Context) error {
	return s.until(ctx, "the app runs on every field device", func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		if err != nil {
			return err
		}
		for _, name := range s.Fields {
			st := devices[name].Status
			if st.Applied != st.Desired || st.Desired == 0 {
				return fmt.Errorf("%s is at generation %d of %d", name, st.Applied, st.Desired)
			}
			if len(st.Apps) != 1 || st.Apps[0].State != api.Running {
				return fmt.Errorf("%s: apps are %+v", name, st.Apps)
			}
		}
		return nil
	})
}

// Answers waits until the app on a box answers with the text.
func (s *Story) Answers(ctx context.Context, box, text string) error {
	return s.until(ctx, box+": the app answers "+text, func(ctx context.Context) error {
		out, err := s.tree().Box(box).AskApp(ctx)
		if err != nil {
			return err
		}
		if !strings.Contains(out, text) {
			return fmt.Errorf("it answered %q", strings.TrimSpace(out))
		}
		return nil
	})
}

// AnswerEverywhere waits until all field boxes answer with the text.
func (s *Story) AnswerEverywhere(ctx context.Context, text string) error {
	for _, f := range s.Fields {
		if err := s.Answers(ctx, f, text); err != nil {
			return err
		}
	}
	return nil
}

// Grown waits until a box has recorded more than before.
func (s *Story) Grown(ctx context.Context, box string, before uint64) (uint64, error) {
	var last uint64
	err := s.until(ctx, box+": usage records accumulate", func(ctx context.Context) error {
		var err error
		if last, err = s.recorded(ctx, box); err != nil {
			return err
		}
		if last <= before {
			return fmt.Errorf("the last record is %d, as before", last)
		}
		return nil
	})
	return last, err
}

// Ledger is what the core counted for one device.
type Ledger struct {
	// Acked is the last record counted, and Totals sum up to it, read at one instant.
	Acked  uint64 `json:"acked"`
	Totals []struct {
		App     string `json:"app"`
		Service string `json:"service"`
		lab.Totals
	} `json:"totals"`
}

// Counted waits until the core has counted every record that the box had when asked,
// and then holds the ledger against the box's own log, record for record.
func (s *Story) Counted(ctx context.Context, box string) (map[string]lab.Totals, error) {
	goal, err := s.recorded(ctx, box)
	if err != nil {
		return nil, err
	}
	var sums map[string]lab.Totals
	err = s.until(ctx, box+": the ledger equals the device's own log", func(ctx context.Context) error {
		var ledger Ledger
		if err := s.tree().GetJSON(ctx, &ledger, "usage", box); err != nil {
			return err
		}
		if ledger.Acked < goal {
			return fmt.Errorf("the core counted up to record %d of %d", ledger.Acked, goal)
		}
		records, err := s.tree().Box(box).Records(ctx)
		if err != nil {
			return err
		}
		sums, err = compare(ledger, records)
		return err
	})
	return sums, err
}

// compare sums the device's records up to the ledger's position and holds them
// against the ledger. It is pure.
func compare(ledger Ledger, records []lab.Record) (map[string]lab.Totals, error) {
	own, next := map[string]lab.Totals{}, uint64(1)
	for _, r := range records {
		if r.Seq > ledger.Acked {
			break
		}
		if r.Seq != next {
			return nil, fmt.Errorf("the device's log lacks record %d (found %d)", next, r.Seq)
		}
		next = max(r.Last, r.Seq) + 1
		if r.Usage == nil {
			continue
		}
		for _, u := range r.Usage.Uses {
			t := own[u.App+"/"+u.Service]
			t.Add(u.Totals)
			own[u.App+"/"+u.Service] = t
		}
	}
	counted := map[string]lab.Totals{}
	for _, t := range ledger.Totals {
		counted[t.App+"/"+t.Service] = t.Totals
	}
	if !maps.Equal(own, counted) {
		return nil, fmt.Errorf("up to record %d the device recorded %v, the core counted %v", ledger.Acked, own, counted)
	}
	if len(own) == 0 {
		return nil, errors.New("nothing was metered")
	}
	return own, nil
}

// UsageTable prints each device's ledger.
func (s *Story) UsageTable(all map[string]map[string]lab.Totals) {
	fmt.Fprintf(s.Out, "\n  %-10s %-14s %12s %10s %16s %12s %12s\n", "DEVICE", "SERVICE", "CONTAINER-S", "CPU-S", "MEMORY-MB-S", "RX-BYTES", "TX-BYTES")
	for _, box := range slices.Sorted(maps.Keys(all)) {
		for _, svc := range slices.Sorted(maps.Keys(all[box])) {
			t := all[box][svc]
			fmt.Fprintf(s.Out, "  %-10s %-14s %12.1f %10.3f %16.1f %12d %12d\n", box, svc, float64(t.RunMillis)/1e3,
				float64(t.CPUMicros)/1e6, float64(t.MemoryByteSeconds)/1e6, t.RxBytes, t.TxBytes)
		}
	}
}

// Classes are the kinds of traffic that the final table tells apart.
var Classes = []string{"artifacts", "manifests", "state", "records", "other"}

// LinkTable prints the bytes that crossed each link, by class as edged counted them
// above TLS, and in all as the kernel counted them on the wire.
func (s *Story) LinkTable(ctx context.Context) error {
	fmt.Fprintf(s.Out, "\n  %-22s", "LINK")
	for _, c := range Classes {
		fmt.Fprintf(s.Out, " %12s", strings.ToUpper(c))
	}
	fmt.Fprintf(s.Out, " %14s %14s\n", "WIRE DOWN", "WIRE UP")
	for _, name := range slices.Sorted(slices.Values(s.tree().Names())) {
		b := s.tree().Box(name)
		byClass, err := linkBytes(ctx, b)
		if err != nil {
			return err
		}
		down, up, err := b.LinkBytes(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "  %-22s", b.ParentName()+" - "+name)
		for _, c := range Classes {
			fmt.Fprintf(s.Out, " %12.0f", byClass[c]+s.lost[name][c])
		}
		fmt.Fprintf(s.Out, " %14d %14d\n", down, up)
	}
	return nil
}

// linkBytes reads what a box counted on its uplink since it started, by class.
func linkBytes(ctx context.Context, b Box) (map[string]float64, error) {
	text, err := b.Local(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return classBytes(string(text)), nil
}

// classBytes sums tributary_link_bytes_total by class, both directions.
func classBytes(metrics string) map[string]float64 {
	sums := map[string]float64{}
	for line := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(line, "tributary_link_bytes_total{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(rest, "} ")
		_, class, _ := strings.Cut(labels, `class="`)
		class, _, _ = strings.Cut(class, `"`)
		var v float64
		_, _ = fmt.Sscanf(strings.TrimSpace(value), "%g", &v)
		sums[class] += v
	}
	return sums
}
