package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

// trainingCommand is what people do with trainings beside writing TrainingJobs.
func (a *app) trainingCommand() *cobra.Command {
	c := &cobra.Command{Use: "training", Short: "Suspend, resume or cancel trainings, and read what they say"}
	for _, v := range []struct {
		verb, short, done string
		set               func(*api.TrainingJobSpec)
	}{
		{"suspend", "End a training at its next checkpoint; it may go on later", "suspends", func(s *api.TrainingJobSpec) { s.Suspend = true }},
		{"resume", "Let a suspended training go on from its checkpoint", "resumes", func(s *api.TrainingJobSpec) { s.Suspend = false }},
		{"cancel", "End a training for good", "is cancelled", func(s *api.TrainingJobSpec) { s.Cancel = true }},
	} {
		c.AddCommand(&cobra.Command{Use: v.verb + " NAME…", Short: v.short, Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := a.changeTraining(cmd, name, v.set); err != nil {
					return err
				}
				fmt.Fprintf(a.Out, "trainingjob/%s %s\n", name, v.done)
			}
			return nil
		}})
	}
	c.AddCommand(a.trainingLogsCommand())
	return c
}

// changeTraining writes one switch of a job, and nothing else that changed meanwhile.
func (a *app) changeTraining(cmd *cobra.Command, name string, set func(*api.TrainingJobSpec)) error {
	kind, err := api.LookupKind(api.KindTrainingJob)
	if err != nil {
		return err
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	o, err := cl.Get(cmd.Context(), kind, strings.TrimPrefix(name, "trainingjob/"))
	if err != nil {
		return err
	}
	var spec api.TrainingJobSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return err
	}
	set(&spec)
	if o.Spec, err = json.Marshal(spec); err != nil {
		return err
	}
	o.Status = nil
	_, err = cl.Apply(cmd.Context(), []*api.Object{o}, false)
	return err
}

func (a *app) trainingLogsCommand() *cobra.Command {
	var size int64
	c := &cobra.Command{Use: "logs NAME", Short: "Print the newest lines that a training's ranks wrote", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		body, err := cl.Open(cmd.Context(), http.MethodGet, "/api/v1/trainingjobs/"+url.PathEscape(strings.TrimPrefix(args[0], "trainingjob/"))+"/logs",
			url.Values{"tenant": {cl.Tenant()}, "bytes": {fmt.Sprint(size)}}, nil, "")
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(a.Out, body)
		return err
	}}
	c.Flags().Int64Var(&size, "bytes", 64<<10, "how many bytes, the newest")
	return c
}
