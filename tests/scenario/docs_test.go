package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tributary.dev/tributary/tests/wait"
)

// command is one line of a shell block in the docs.
type command struct {
	file string
	line int
	text string
	// lab: the block is marked "sh lab", so it runs on a standing tree.
	lab bool
	// exit is the status that the line's comment announces ("# exits with 10: …").
	exit int
}

// docCommands finds every line of every ```sh block. A line that ends in a backslash
// goes on in the next.
func docCommands(t *testing.T, root string) []command {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	must(t, err)
	files = append([]string{filepath.Join(root, "README.md")}, files...)
	var out []command
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		fence, joined := "", ""
		for i, line := range strings.Split(string(b), "\n") {
			info, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case isFence && fence == "":
				if fence = info; fence == "" {
					fence = "text"
				}
			case isFence:
				fence = ""
			case fence == "sh" || fence == "sh lab":
				text, comment, _ := strings.Cut(line, " # ")
				exit := 0
				_, _ = fmt.Sscanf(comment, "exits with %d", &exit)
				if joined += strings.TrimSpace(text); strings.HasSuffix(joined, "\\") {
					joined = strings.TrimSuffix(joined, "\\")
					continue
				}
				if joined != "" && !strings.HasPrefix(joined, "#") {
					out = append(out, command{filepath.Base(f), i + 1, joined, fence == "sh lab", exit})
				}
				joined = ""
			}
		}
	}
	return out
}

var makeLine = regexp.MustCompile(`^(?:[A-Z]+=\S+ )?make ([a-z-]+)`)

// TestDocsCommandsExist holds the commands that need no tree against the Makefile.
func TestDocsCommandsExist(t *testing.T) {
	root, err := filepath.Abs("../..")
	must(t, err)
	mk, err := os.ReadFile(filepath.Join(root, "Makefile"))
	must(t, err)
	seen := 0
	for _, c := range docCommands(t, root) {
		if c.lab {
			continue
		}
		seen++
		if m := makeLine.FindStringSubmatch(c.text); m != nil {
			if !strings.Contains(string(mk), "\n"+m[1]+":") {
				t.Errorf("%s:%d: the Makefile has no target %s", c.file, c.line, m[1])
			}
			continue
		}
		if !strings.HasPrefix(c.text, "git clone ") && !strings.HasPrefix(c.text, "cd ") {
			t.Errorf("%s:%d: nothing runs %q: mark its block \"sh lab\"", c.file, c.line, c.text)
		}
	}
	if seen == 0 {
		t.Error("no command found in the docs")
	}
}

// TestDocsCommands runs every command of the blocks marked "sh lab", in order, on a
// standing tree with the demo's app, as a person in a shell on the core would.
func TestDocsCommands(t *testing.T) {
	s := raise(t, pair(), "--listen-bootstrap", ":8444")
	ctx := t.Context()
	up(ctx, t, s)
	env, err := s.Lab.EdgectlEnv()
	must(t, err)
	env = append(os.Environ(), append(env, "PATH="+s.Lab.Bin+":"+os.Getenv("PATH"), "DATA="+s.Lab.CoreDir())...)
	work := t.TempDir()
	must(t, os.WriteFile(filepath.Join(work, "passphrase"), []byte("correct horse battery staple\n"), 0o600))
	must(t, os.Symlink(filepath.Join(s.Root, "tests"), filepath.Join(work, "tests")))
	must(t, os.Symlink(filepath.Join(s.Root, ".cache"), filepath.Join(work, ".cache")))
	ran := 0
	for _, c := range docCommands(t, s.Root) {
		if !c.lab {
			continue
		}
		ran++
		t.Logf("%s:%d: %s", c.file, c.line, c.text)
		limited, cancel := context.WithTimeout(ctx, wait.Limit)
		out, exit, err := shell(limited, s.Lab.CorePrefix(), work, env, c.text)
		cancel()
		if err != nil || exit != c.exit {
			t.Errorf("%s:%d: %s: exit status %d, want %d (%v)\n%s", c.file, c.line, c.text, exit, c.exit, err, out)
		}
	}
	if ran < 10 {
		t.Errorf("only %d commands found in the docs", ran)
	}
}

func shell(ctx context.Context, prefix []string, dir string, env []string, line string) (out string, exit int, err error) {
	argv := append(append([]string{}, prefix...), "bash", "-euo", "pipefail", "-c", line)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	b, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ctx.Err() == nil {
		return string(b), ended.ExitCode(), nil
	}
	return string(b), 0, err
}
