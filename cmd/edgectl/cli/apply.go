package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/cmd/edgectl/client"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/compose"
)

func sourceFlags(c *cobra.Command, o *sourceOptions) {
	f := c.Flags()
	f.StringArrayVarP(&o.files, "filename", "f", nil, "file or folder of objects, or a Compose file; - is standard input")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "read folders within folders too")
	f.StringVar(&o.name, "name", "", "name of the app, for a bare Compose file")
	f.StringArrayVar(&o.profiles, "profile", nil, "Compose profile to enable")
	f.StringArrayVar(&o.variables, "set", nil, "NAME=value, a variable for Compose files")
}

func (a *app) applyCommand() *cobra.Command {
	var o sourceOptions
	var p pruneOptions
	var dryRun, hold bool
	var output string
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Create or change objects, all or none", Args: cobra.NoArgs,
		Long: `Create or change the objects of files, folders or standard input: all of them, or
none when one is refused. A bare Compose file becomes an App named by --name or by its
folder; files it refers to (env_file, file: of configs) and a .env beside it are read
along. In an App, spec.composeFile names a Compose file beside the manifest.

With --prune -l LABEL, objects that have the label and are not in the files (any more) are
deleted after that: sites, configs, secrets, apps and fleets of the same tenants. All
objects of the files must have the label, so that it is theirs.`,
		Example: "  edgectl apply -f shop.yaml\n  edgectl apply -f shop/ --prune -l owner=shop --dry-run\n  edgectl apply -f compose.yaml --name shop --set TAG=1.2\n  edgectl apply -f fleets/ --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			results, err := a.apply(cmd, o, p, client.ApplyOptions{DryRun: dryRun, Hold: hold})
			if len(results) == 0 && err != nil {
				return err
			}
			// What was done is told also when pruning was refused half-way.
			return errors.Join(a.printResults(results, dryRun, output), err)
		},
	}
	sourceFlags(c, &o)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "have the core check everything, and change nothing")
	c.Flags().BoolVar(&hold, "hold", false, "give no device what is written: a Rollout does later (what a Rollout in the files gives is held without this)")
	c.Flags().BoolVar(&p.on, "prune", false, "delete what --selector picks and the files do not have")
	c.Flags().StringVarP(&p.selector, "selector", "l", "", "with --prune: the label of the objects of these files")
	c.Flags().StringVarP(&output, "output", "o", "", "json, yaml or name")
	return c
}

func (a *app) apply(cmd *cobra.Command, o sourceOptions, p pruneOptions, how client.ApplyOptions) ([]client.Result, error) {
	sources, err := a.readSources(o)
	if err != nil {
		return nil, err
	}
	if err := p.check(sources); err != nil {
		return nil, err
	}
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	objects := make([]*api.Object, len(sources))
	for i, s := range sources {
		objects[i] = s.object
	}
	results, err := cl.ApplyWith(cmd.Context(), objects, how)
	if err != nil {
		return nil, whereIs(err, sources)
	}
	if p.on {
		gone, err := prune(cmd.Context(), cl, p, results, how.DryRun)
		return append(results, gone...), err
	}
	return results, nil
}

// whereIs finds the file and line of a fault that the core found. The request had one
// object a line; a fault inside a Compose file has a path that no object has.
func whereIs(err error, sources []*source) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Causes = nil
	for _, cause := range e.Causes {
		var inner *api.Error
		errors.As(whereIs(cause, sources), &inner)
		c.Causes = append(c.Causes, inner)
	}
	if len(e.Causes) > 0 || e.Field == "" {
		c.Line = 0
		return &c
	}
	field := strings.TrimPrefix(strings.TrimPrefix(e.Field, "spec.compose."), "spec.compose: ")
	inCompose := field != e.Field || strings.HasPrefix(field, "services") || strings.HasPrefix(field, "configs") || strings.HasPrefix(field, "secrets")
	if inCompose {
		for _, s := range sources {
			if s.composeFile != "" && (len(sources) == 1 || onlyApp(sources) == s) {
				c.Field, c.Line = field, composeLine(s, field)
				return located(&c, s.composeFile, s.composeOffset)
			}
		}
		c.Line = 0
		return &c
	}
	if e.Line >= 1 && e.Line <= len(sources) {
		s := sources[e.Line-1]
		c.Line = documentLine(s.doc, e.Field)
		return located(&c, s.file, 0)
	}
	c.Line = 0
	return &c
}

func onlyApp(sources []*source) (only *source) {
	for _, s := range sources {
		if s.object.Kind == api.KindApp {
			if only != nil {
				return nil
			}
			only = s
		}
	}
	return only
}

func documentLine(d api.Document, field string) int {
	for field != "" {
		if n, ok := d.Lines[field]; ok {
			return n
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			break
		}
		field = field[:cut]
	}
	return d.Line
}

func (a *app) printResults(results []client.Result, dryRun bool, output string) error {
	switch output {
	case "":
	case "name":
		for _, r := range results {
			fmt.Fprintln(a.Out, strings.ToLower(r.Kind)+"/"+r.Name)
		}
		return nil
	case "json", "yaml":
		return a.printValue(map[string]any{"results": results}, output)
	default:
		return badOutput(output, "json, yaml or name")
	}
	note := ""
	if dryRun {
		note = " (dry run)"
	}
	for _, r := range results {
		fmt.Fprintf(a.Out, "%s/%s %s%s\n", strings.ToLower(r.Kind), r.Name, r.Action, note)
		for _, w := range r.Warnings {
			fmt.Fprintf(a.Err, "warning: %s/%s: %s\n", strings.ToLower(r.Kind), r.Name, printable(w))
		}
		if r.Object != nil && r.Kind == api.KindJoinToken {
			var s api.JoinTokenStatus
			if readStatus(r.Object, &s) == nil && s.Token != "" {
				fmt.Fprintf(a.Out, "  token, shown this once: %s\n", s.Token)
			}
		}
	}
	return nil
}

func badOutput(given, known string) error {
	return &api.Error{Code: api.Invalid, Field: "--output", Message: fmt.Sprintf("%q is not an output form", given), Remedy: "use " + known}
}

// printValue writes any value as JSON or YAML.
func (a *app) printValue(v any, form string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if form == "yaml" {
		if b, err = api.YAML(b); err != nil {
			return err
		}
	} else {
		b = append(b, '\n')
	}
	_, err = a.Out.Write(b)
	return err
}

func (a *app) diffCommand() *cobra.Command {
	var o sourceOptions
	c := &cobra.Command{
		Use: "diff -f FILE", Short: "Show what apply would change", Args: cobra.NoArgs,
		Long: "Show what apply would change, and change nothing. The exit code is 10 when something would.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			results, err := a.apply(cmd, o, pruneOptions{}, client.ApplyOptions{DryRun: true})
			if err != nil {
				return err
			}
			if a.printDiff(results) {
				return exitError(exitDifferent)
			}
			return nil
		},
	}
	sourceFlags(c, &o)
	return c
}

func (a *app) printDiff(results []client.Result) (different bool) {
	for _, r := range results {
		if r.Action == "unchanged" {
			continue
		}
		if r.Action == "unknown" {
			fmt.Fprintf(a.Out, "%s/%s is not compared: that takes a role that may write it\n", strings.ToLower(r.Kind), r.Name)
			continue
		}
		different = true
		fmt.Fprintf(a.Out, "%s/%s would be %s\n", strings.ToLower(r.Kind), r.Name, r.Action)
		for _, ch := range r.Changes {
			switch {
			case ch.Old == nil:
				a.printValueLines("+", ch.Path, ch.New)
			case ch.New == nil:
				a.printValueLines("-", ch.Path, ch.Old)
			default:
				a.printChange(ch)
			}
		}
	}
	return different
}

// printValueLines shows a value that comes or goes: in one line when it is a plain one,
// else as YAML, so that the text within can be read.
func (a *app) printValueLines(sign, path string, v any) {
	text, isText := v.(string)
	b, err := json.Marshal(v)
	switch v.(type) {
	case map[string]any, []any:
	default:
		if err != nil || !strings.Contains(text, "\n") {
			fmt.Fprintf(a.Out, "  %s %s: %s\n", sign, path, oneLine(v))
			return
		}
	}
	if !isText {
		if y, err := api.YAML(b); err == nil {
			b = y
		}
		text = string(b)
	}
	fmt.Fprintf(a.Out, "  %s %s:\n", sign, path)
	for line := range strings.Lines(text) {
		fmt.Fprintf(a.Out, "      %s %s\n", sign, printable(strings.TrimSuffix(line, "\n")))
	}
}

// printChange shows a changed value; of long text the lines that differ.
func (a *app) printChange(ch client.Change) {
	old, okOld := ch.Old.(string)
	new, okNew := ch.New.(string)
	if okOld && okNew && (strings.Contains(old, "\n") || strings.Contains(new, "\n")) {
		fmt.Fprintf(a.Out, "  ~ %s:\n", ch.Path)
		for _, line := range lineDiff(old, new) {
			fmt.Fprintln(a.Out, "      "+printable(line))
		}
		return
	}
	fmt.Fprintf(a.Out, "  ~ %s: %s → %s\n", ch.Path, oneLine(ch.Old), oneLine(ch.New))
}

func oneLine(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return printable(clip(string(b), 200))
}

// lineDiff lists the lines that were removed (-) and added (+), in order, with none of
// those that stayed. It finds a longest common subsequence; past 2,000 lines it gives
// up on order and compares as a whole.
func lineDiff(old, new string) (out []string) {
	x, y := strings.Split(strings.TrimSuffix(old, "\n"), "\n"), strings.Split(strings.TrimSuffix(new, "\n"), "\n")
	if len(x) > 2000 || len(y) > 2000 {
		return []string{fmt.Sprintf("- %d lines", len(x)), fmt.Sprintf("+ %d lines", len(y))}
	}
	common := make([][]int16, len(x)+1)
	for i := range common {
		common[i] = make([]int16, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(x) || j < len(y); {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "- "+x[i])
			i++
		default:
			out = append(out, "+ "+y[j])
			j++
		}
	}
	return out
}

func (a *app) deleteCommand() *cobra.Command {
	var o sourceOptions
	var ignoreMissing bool
	c := &cobra.Command{
		Use: "delete KIND NAME… | KIND/NAME… | -f FILE", Short: "Delete objects",
		Example:           "  edgectl delete app shop\n  edgectl delete fleet/field config/site\n  edgectl delete -f shop.yaml",
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := a.refsToDelete(args, o)
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			for _, r := range refs {
				err := cl.Delete(cmd.Context(), r.kind, r.name)
				switch {
				case err == nil:
					fmt.Fprintf(a.Out, "%s/%s deleted\n", strings.ToLower(r.kind.Name), r.name)
				case ignoreMissing && api.CodeOf(err) == api.NotFound:
				default:
					return err
				}
			}
			return nil
		},
	}
	sourceFlags(c, &o)
	c.Flags().BoolVar(&ignoreMissing, "ignore-not-found", false, "what is not there is no error")
	return c
}

// ref is one object named on the command line; an empty name means all of the kind.
type ref struct {
	kind *api.Kind
	name string
}

func (a *app) refsToDelete(args []string, o sourceOptions) ([]ref, error) {
	if len(o.files) > 0 {
		sources, err := a.readSources(o)
		if err != nil {
			return nil, err
		}
		var refs []ref
		for i := len(sources) - 1; i >= 0; i-- {
			k, err := api.LookupKind(sources[i].object.Kind)
			if err != nil {
				return nil, err
			}
			refs = append(refs, ref{k, sources[i].object.Metadata.Name})
		}
		sortForDeletion(refs)
		return refs, nil
	}
	refs, err := parseRefs(args)
	if err != nil {
		return nil, err
	}
	sortForDeletion(refs)
	for _, r := range refs {
		if r.name == "" {
			return nil, &api.Error{Code: api.Invalid, Message: "no " + r.kind.Name + " is named", Remedy: "write `edgectl delete " + strings.ToLower(r.kind.Name) + " NAME`; there is no deleting of all"}
		}
	}
	return refs, nil
}

// sortForDeletion puts first what refers to others: the core refuses to delete what is
// in use.
func sortForDeletion(refs []ref) {
	order := func(r ref) int {
		return slices.IndexFunc(api.Kinds, func(k api.Kind) bool { return k.Name == r.kind.Name })
	}
	slices.SortStableFunc(refs, func(a, b ref) int { return order(b) - order(a) })
}

// parseRefs reads KIND, KIND,KIND…, KIND NAME… and KIND/NAME… .
func parseRefs(args []string) ([]ref, error) {
	if len(args) == 0 {
		return nil, &api.Error{Code: api.Invalid, Message: "no kind is named", Remedy: "the kinds are " + strings.Join(plurals(), ", ")}
	}
	if strings.Contains(args[0], "/") {
		var refs []ref
		for _, arg := range args {
			kind, name, ok := strings.Cut(arg, "/")
			k, err := api.LookupKind(kind)
			if err != nil {
				return nil, err
			}
			if !ok || name == "" {
				return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("%q names no object", arg), Remedy: "write KIND/NAME"}
			}
			refs = append(refs, ref{k, name})
		}
		return refs, nil
	}
	var refs []ref
	for word := range strings.SplitSeq(args[0], ",") {
		k, err := api.LookupKind(word)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(refs, ref{kind: k}) {
			refs = append(refs, ref{kind: k})
		}
	}
	if len(args) == 1 {
		return refs, nil
	}
	if len(refs) > 1 {
		return nil, &api.Error{Code: api.Invalid, Message: "names go with one kind", Remedy: "write KIND/NAME for each object"}
	}
	k := refs[0].kind
	refs = nil
	for _, name := range args[1:] {
		refs = append(refs, ref{k, name})
	}
	return refs, nil
}

func plurals() (list []string) {
	for _, k := range api.Kinds {
		list = append(list, k.Plural)
	}
	return list
}

func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// composeLine finds a field in an App's Compose text.
func composeLine(s *source, field string) int {
	var spec api.AppSpec
	if readSpec(s.object, &spec) != nil {
		return 0
	}
	return compose.Line(spec.Compose, field)
}
