package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

// incidentRow says what went wrong and who looks after it.
func (a *app) incidentRow(o *api.Object) []string {
	var s api.IncidentSpec
	var st api.IncidentStatus
	_ = readSpec(o, &s)
	_ = readStatus(o, &st)
	state := st.State
	if s.Acknowledged && state == api.IncidentOpen {
		state = "acknowledged"
	}
	return []string{o.Metadata.Name, orDash(state), orDash(st.Cause), strconv.Itoa(st.Count), orDash(clip(strings.Join(st.Sites, ","), 30)), strconv.Itoa(st.Findings), a.age(&st.Since), clip(st.Message, 120)}
}

func (a *app) incidentCommand() *cobra.Command {
	c := &cobra.Command{Use: "incident", Short: "Acknowledge or close what went wrong"}
	for verb, say := range map[string]struct {
		short, done string
		set         func(*api.IncidentSpec)
	}{
		"acknowledge": {"Say that somebody looks after it", "acknowledged", func(s *api.IncidentSpec) { s.Acknowledged = true }},
		"close":       {"Say that it is over, whatever devices tell", "closed", func(s *api.IncidentSpec) { s.Closed = true }},
	} {
		var note string
		one := &cobra.Command{Use: verb + " NAME…", Short: say.short, Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := a.sayOfIncident(cmd, strings.TrimPrefix(name, "incident/"), note, say.set); err != nil {
					return err
				}
				fmt.Fprintf(a.Out, "incident/%s %s\n", name, say.done)
			}
			return nil
		}}
		one.Flags().StringVar(&note, "note", "", "what other people should know")
		c.AddCommand(one)
	}
	return c
}

func (a *app) sayOfIncident(cmd *cobra.Command, name, note string, set func(*api.IncidentSpec)) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	kind, err := api.LookupKind(api.KindIncident)
	if err != nil {
		return err
	}
	o, err := cl.Get(cmd.Context(), kind, name)
	if err != nil {
		return err
	}
	var spec api.IncidentSpec
	if err := readSpec(o, &spec); err != nil {
		return err
	}
	if set(&spec); note != "" {
		spec.Note = note
	}
	if o.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	o.Status, o.Metadata.Revision = nil, 0 // whatever the core found meanwhile
	_, err = cl.Apply(cmd.Context(), []*api.Object{o}, false)
	return err
}
