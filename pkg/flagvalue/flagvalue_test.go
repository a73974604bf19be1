package flagvalue

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
)

func TestExplain(t *testing.T) {
	for args, want := range map[string][]string{
		"--counter abc": {"--counter: ", `"abc" is not a whole number, 0 or more`, "security floor"},
		"--counter -1":  {`"-1" is not a whole number, 0 or more`},
		"--since 5":     {"--since: ", `"5" is not a time with its unit, such as 90s`},
		"--times x":     {`"x" is not a whole number`},
		"--dry=maybe":   {`"maybe" is not true or false`},
		"--cuonter 1":   {"--cuonter", "`tool sub --help`"},
		"--counter":     {"--counter: it was given no value", "security floor"},
		"--on day":      {"--on: ", "write it as 2026-01-31"},
	} {
		root := &cobra.Command{Use: "tool", SilenceErrors: true, SilenceUsage: true}
		root.SetFlagErrorFunc(Explain)
		sub := &cobra.Command{Use: "sub", RunE: func(*cobra.Command, []string) error { return nil }}
		sub.Flags().Uint64("counter", 1, "security floor")
		sub.Flags().Duration("since", time.Hour, "how far back")
		sub.Flags().Int("times", 1, "how often")
		sub.Flags().Bool("dry", false, "only look")
		sub.Flags().Func("on", "the day", func(string) error { return errors.New("write it as 2026-01-31") })
		root.AddCommand(sub)
		root.SetArgs(append([]string{"sub"}, strings.Fields(args)...))
		root.SetOut(io.Discard)
		err := root.Execute()
		if api.CodeOf(err) != api.Invalid {
			t.Errorf("%s: %v", args, err)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v\nlacks %q", args, err, w)
			}
		}
		if strings.Contains(err.Error(), "strconv") || strings.Contains(err.Error(), "parsing") {
			t.Errorf("%s: %v", args, err)
		}
	}
}
