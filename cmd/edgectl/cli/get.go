package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
)

type getOptions struct {
	output   string
	selector string
	watch    bool
	tree     bool
	tenants  bool
	noHeader bool
}

func (a *app) getCommand() *cobra.Command {
	var o getOptions
	c := &cobra.Command{
		Use: "get KIND[,KIND…] | KIND NAME… | KIND/NAME…", Short: "List or show objects",
		Long:              "List or show objects. The kinds are " + strings.Join(plurals(), ", ") + ".",
		Example:           "  edgectl get devices\n  edgectl get devices --tree\n  edgectl get devices -l role=field,!retired -o wide\n  edgectl get app shop -o yaml\n  edgectl get apps,fleets\n  edgectl get devices -w",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.get(cmd, args, o)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "table", "table, wide, json, yaml or name")
	f.StringVarP(&o.selector, "selector", "l", "", "labels, e.g. role=field,tier!=1,site in (a,b),!old")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on and show changes")
	f.BoolVar(&o.tree, "tree", false, "draw devices or tenants as the tree they form")
	f.BoolVarP(&o.tenants, "all-tenants", "A", false, "of every tenant")
	f.BoolVar(&o.noHeader, "no-headers", false, "leave out the table's first line")
	return c
}

func (a *app) get(cmd *cobra.Command, args []string, o getOptions) error {
	if len(args) == 1 && isInvoices(args[0]) {
		return a.getInvoices(cmd, o)
	}
	refs, err := parseRefs(args)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"table", "wide", "json", "yaml", "name"}, o.output) {
		return badOutput(o.output, "table, wide, json, yaml or name")
	}
	if _, err := api.ParseSelector(o.selector); err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	list := client.ListOptions{Selector: o.selector, AllTenants: o.tenants}
	if refs[0].name == "" {
		return a.getKinds(cmd, cl, refs, list, o)
	}
	if o.watch || o.selector != "" || o.tree {
		return &api.Error{Code: api.Invalid, Message: "--watch, --selector and --tree go with a whole kind", Remedy: "leave the names out"}
	}
	var objects []*api.Object
	for _, r := range refs {
		obj, err := cl.Get(cmd.Context(), r.kind, r.name)
		if err != nil {
			return err
		}
		objects = append(objects, obj)
	}
	a.knowForTable(cmd.Context(), cl, objects, o)
	return a.printObjects(objects, o, len(refs) == 1)
}

// getKinds shows all objects of one kind or of several.
func (a *app) getKinds(cmd *cobra.Command, cl *client.Client, kinds []ref, list client.ListOptions, o getOptions) error {
	if len(kinds) > 1 && (o.watch || o.tree) {
		return &api.Error{Code: api.Invalid, Message: "--watch and --tree go with one kind", Remedy: "run one `edgectl get` a kind"}
	}
	if o.watch {
		return a.watch(cmd, cl, kinds[0].kind, list, o)
	}
	var all []*api.Object
	for _, r := range kinds {
		objects, err := cl.List(cmd.Context(), r.kind, list)
		if err != nil {
			return err
		}
		if o.tree {
			return a.printTree(r.kind, objects)
		}
		if len(objects) == 0 && (o.output == "table" || o.output == "wide") {
			fmt.Fprintln(a.Err, "there are no "+r.kind.Plural+a.inTenant())
		}
		all = append(all, objects...)
	}
	a.knowForTable(cmd.Context(), cl, all, o)
	return a.printObjects(all, o, false)
}

func (a *app) knowForTable(ctx context.Context, cl *client.Client, objects []*api.Object, o getOptions) {
	if o.output == "table" || o.output == "wide" {
		a.knowParents(ctx, cl, objects)
		a.knowFleets(ctx, cl, objects)
	}
}

// printObjects writes objects in the wanted form; alone writes a single object as
// itself, not as a list of one.
func (a *app) printObjects(objects []*api.Object, o getOptions, alone bool) error {
	switch o.output {
	case "name":
		for _, obj := range objects {
			fmt.Fprintln(a.Out, strings.ToLower(obj.Kind)+"/"+obj.Metadata.Name)
		}
		return nil
	case "json":
		if alone {
			return a.printValue(objects[0], "json")
		}
		return a.printValue(map[string]any{"items": objects}, "json")
	case "yaml":
		b, err := api.EncodeYAML(objects...)
		if err != nil {
			return err
		}
		_, err = a.Out.Write(b)
		return err
	}
	// Objects of several kinds come in one table each.
	for len(objects) > 0 {
		kind := objects[0].Kind
		n := slices.IndexFunc(objects, func(obj *api.Object) bool { return obj.Kind != kind })
		if n < 0 {
			n = len(objects)
		}
		t := a.tableOf(kind, o)
		for _, obj := range objects[:n] {
			t.add(obj, "")
		}
		t.write(a.Out, !o.noHeader)
		if objects = objects[n:]; len(objects) > 0 {
			fmt.Fprintln(a.Out)
		}
	}
	return nil
}

func (a *app) inTenant() string {
	if t := a.value(a.tenant, "EDGECTL_TENANT"); t != "" {
		return " in tenant " + t
	}
	return ""
}

// watch shows what is there, then every change as a further row.
func (a *app) watch(cmd *cobra.Command, cl *client.Client, k *api.Kind, list client.ListOptions, o getOptions) error {
	t := a.tableOf(k.Name, o)
	write := func(header bool) {
		a.knowForTable(cmd.Context(), cl, t.objects(), o)
		t.write(a.Out, header)
	}
	synced, again := false, false
	return cl.Watch(cmd.Context(), k, list, func(e client.Event) error {
		switch o.output {
		case "json":
			if e.Object == nil {
				return nil
			}
			return json.NewEncoder(a.Out).Encode(map[string]any{"type": e.Type, "object": e.Object})
		case "yaml":
			if e.Object == nil {
				return nil
			}
			b, err := api.EncodeYAML(e.Object)
			if err == nil {
				_, err = fmt.Fprintf(a.Out, "---\n# %s\n%s", e.Type, b)
			}
			return err
		case "name":
			if e.Object == nil {
				return nil
			}
			_, err := fmt.Fprintf(a.Out, "%s/%s %s\n", strings.ToLower(e.Object.Kind), e.Object.Metadata.Name, e.Type)
			return err
		}
		switch {
		case e.Type == "synced":
			header := !synced && !o.noHeader
			if again = synced; again {
				fmt.Fprintln(a.Err, "the core has forgotten where we were; this is the state of now")
			}
			synced = true
			write(header)
		case e.Type == "deleted":
			t.add(e.Object, "deleted")
			if synced {
				write(false)
			}
		default:
			t.add(e.Object, "")
			if synced {
				write(false)
			}
		}
		return nil
	})
}

// table writes rows in columns; widths only grow, so that later rows stay in line.
type table struct {
	header []string
	row    func(*api.Object) []string
	// under, when there is one, gives a line to stand below an object's row; "" for none.
	under   func(*api.Object) string
	pending []pendingRow
	rows    [][]string
	widths  []int
}

type pendingRow struct {
	object *api.Object
	note   string
}

func (t *table) add(o *api.Object, note string) {
	t.pending = append(t.pending, pendingRow{o, note})
}

// objects are those whose rows are not written yet.
func (t *table) objects() (list []*api.Object) {
	for _, p := range t.pending {
		list = append(list, p.object)
	}
	return list
}

func (t *table) write(w io.Writer, header bool) {
	under := map[int]string{}
	for _, p := range t.pending {
		row := t.row(p.object)
		if t.under != nil {
			under[len(t.rows)] = t.under(p.object)
		}
		if p.note != "" {
			row = append(row, p.note)
		}
		t.rows = append(t.rows, row)
	}
	t.pending = nil
	rows, first := t.rows, 0
	if header {
		rows, first = append([][]string{t.header}, rows...), 1
	}
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.ReplaceAll(printable(cell), "\n", " ")
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for n, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
		if line := under[n-first]; line != "" {
			fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(printable(line), "\n", " "))
		}
	}
	t.rows = nil
}
