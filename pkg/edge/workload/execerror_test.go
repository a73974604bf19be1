package workload

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"tributary.dev/tributary/pkg/api"
)

// What runc and containerd say when a program does not start becomes what a shell would
// say; a containerd that is away is told as such.
func TestExplainExec(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		exit int
		code api.Code
		says string
	}{
		"ran":            {exit: 3},
		"not there":      {err: errors.New(`OCI runtime exec failed: exec failed: unable to start container process: exec: "frob": executable file not found in $PATH: unknown`), exit: 127, says: "frob: not found\n"},
		"no such path":   {err: errors.New(`OCI runtime exec failed: unable to start container process: exec: "frob": stat frob: no such file or directory: unknown`), exit: 127, says: "frob: not found\n"},
		"not executable": {err: errors.New(`OCI runtime exec failed: unable to start container process: exec: "frob": permission denied: unknown`), exit: 126, says: "frob: cannot be run\n"},
		"away":           {err: fmt.Errorf("connection error: desc = dial unix: %w", errdefs.ErrUnavailable), code: api.Unavailable},
		"away, raw":      {err: errgrpc.ToGRPC(errdefs.ErrUnavailable), code: api.Unavailable},
		"other":          {err: errors.New("no such file or directory"), code: api.Internal},
	} {
		for _, tty := range []bool{false, true} {
			var out, err bytes.Buffer
			told := 3
			if c.err != nil {
				told = 0
			}
			exit, e := explainExec(ExecRequest{Argv: []string{"frob"}, TTY: tty, Stdout: &out, Stderr: &err}, told, c.err)
			if exit != c.exit || (e != nil) != (c.code != "") || e != nil && api.CodeOf(e) != c.code || out.String()+err.String() != c.says || tty == (err.Len() > 0) && c.says != "" {
				t.Errorf("%s, terminal %v: %d %v, says %q %q", name, tty, exit, e, out.String(), err.String())
			}
		}
	}
}
