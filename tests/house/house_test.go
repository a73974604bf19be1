// Package house answers: does the code still stand where the architecture says?
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "tributary.dev/tributary/"

// root is the top of the checkout, seen from this folder.
const root = "../.."

// rule forbids imports: a package under From may not import one under any of Not,
// except those under Except.
type rule struct {
	From   string
	Not    []string
	Except []string
	Why    string
}

var rules = []rule{
	{"pkg/api", []string{"pkg/", "cmd/", "tests/"}, []string{"pkg/api", "pkg/pattern"}, "the nouns import nothing of ours"},
	{"hwprofiles", []string{"pkg/", "cmd/", "image/", "tests/"}, []string{"pkg/api"}, "the profiles are read by all, and lean on the nouns alone"},
	{"pkg/edge/", []string{"pkg/core/"}, nil, "the wings never import each other"},
	{"pkg/core/", []string{"pkg/edge/"}, nil, "the wings never import each other"},
	{"pkg/identity", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/manifest", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/link", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/report", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/claim", []string{"pkg/", "hwprofiles"}, []string{"pkg/api", "pkg/natural"}, "box and core decide by the same function, which knows the nouns alone"},
	{"pkg/oci", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/anomaly", []string{"pkg/", "hwprofiles"}, nil, "it knows numbers and times alone"},
	{"pkg/dnssd", []string{"pkg/"}, nil, "relays, the core and boxes without an owner find each other by it; it stands on nothing"},
	{"pkg/efi", []string{"pkg/edge/", "pkg/core/"}, nil, "the ground floor carries both wings and leans on neither"},
	{"pkg/tpm", []string{"pkg/", "hwprofiles"}, []string{"pkg/tpm"}, "the box seals and quotes, the core judges, the builder signs: one ground for the three, which stands on nothing"},
	{"pkg/tpm/attest", []string{"pkg/"}, []string{"pkg/tpm/attest"}, "the core judges a quote without the code that talks to a TPM"},
	{"pkg/disk", []string{"pkg/", "hwprofiles"}, []string{"pkg/disk", "pkg/pattern"}, "the formats of disks serve builder, initramfs and update alike, and stand on nothing"},
	{"pkg/", []string{"cmd/", "image/", "tests/"}, nil, "nobody imports programs, the image builder or tests"},
	{"cmd/", []string{"cmd/", "tests/"}, []string{"cmd/"}, "programs do not import tests"},
}

// halls may import the rooms of their wing; other rooms do not know each other.
// An entry "room -> room" below is an agreed exception, with its reason.
var halls = map[string]bool{"pkg/edge/agent": true, "pkg/core/server": true}

var agreed = map[string]string{
	"pkg/edge/workload -> pkg/edge/meter":   "a workload tells the meter what to measure in the meter's own words",
	"pkg/core/fleet -> pkg/core/store":      "the store's interface is what the core's rooms share",
	"pkg/core/billing -> pkg/core/store":    "the store's interface is what the core's rooms share",
	"pkg/core/usage -> pkg/core/database":   "objects and ledger are opened and brought up to date alike",
	"pkg/core/billing -> pkg/core/database": "objects and ledger are opened and brought up to date alike",
	"pkg/core/rollout -> pkg/core/store":    "the store's interface is what the core's rooms share",
	"pkg/core/audit -> pkg/core/database":   "what is audited is written in one transaction with its row",
	"pkg/core/audit -> pkg/core/store":      "the store's interface is what the core's rooms share",
	"pkg/core/access -> pkg/core/store":     "the store's interface is what the core's rooms share",
	"pkg/core/attest -> pkg/core/store":     "the store's interface is what the core's rooms share",
	"pkg/core/store -> pkg/core/database":   "objects and ledger are opened and brought up to date alike",
	"pkg/core/lease -> pkg/core/database":   "leases stand in the same transactions as the work",
	"pkg/core/people -> pkg/core/database":  "what the core keeps is opened and brought up to date alike",
	"pkg/core/intake -> pkg/core/database":  "objects and ledger are opened and brought up to date alike",
	"pkg/core/insight -> pkg/core/store":    "the store's interface is what the core's rooms share",
	"pkg/core/roster -> pkg/core/store":     "the store's interface is what the core's rooms share",
	"pkg/edge/workload -> pkg/edge/network": "a container is attached to its network while it is being created",
}

type file struct {
	path    string // relative to root, with slashes
	ast     *ast.File
	imports []string // of this module, relative
}

func sources(t *testing.T) []file {
	t.Helper()
	var files []file
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "node_modules" || d.Name() == "testdata" || rel == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out := file{path: rel, ast: f}
		for _, imp := range f.Imports {
			p, _ := strconv.Unquote(imp.Path.Value)
			if r, ok := strings.CutPrefix(p, module); ok {
				out.imports = append(out.imports, r)
			}
		}
		files = append(files, out)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d Go files below %s: is the test run from its own folder?", len(files), root)
	}
	return files
}

func under(path, prefix string) bool {
	return path == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

func violates(r rule, from, imp string) bool {
	if !under(from, r.From) {
		return false
	}
	for _, ex := range r.Except {
		if under(imp, ex) {
			return false
		}
	}
	for _, not := range r.Not {
		if under(imp, not) {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue // a test may bring the other wing to talk to
		}
		from := filepath.ToSlash(filepath.Dir(f.path))
		for _, imp := range f.imports {
			for _, r := range rules {
				if violates(r, from, imp) {
					t.Errorf("%s imports %s: %s", f.path, imp, r.Why)
				}
			}
			if msg := crossRoom(from, imp); msg != "" {
				t.Errorf("%s imports %s: %s", f.path, imp, msg)
			}
		}
	}
}

// crossRoom says what is wrong when one room of a wing imports another.
func crossRoom(from, imp string) string {
	a, b := room(from), room(imp)
	if a == "" || b == "" || a == b || halls[a] {
		return ""
	}
	if filepath.Dir(a) != filepath.Dir(b) {
		return "" // another wing: the rules above speak
	}
	if _, ok := agreed[a+" -> "+b]; ok {
		return ""
	}
	return "rooms of a wing meet through interfaces, wired in the hall or in cmd"
}

// room is "pkg/edge/x" or "pkg/core/x" for any path inside it.
func room(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 3 || parts[0] != "pkg" || (parts[1] != "edge" && parts[1] != "core") {
		return ""
	}
	return strings.Join(parts[:3], "/")
}

// TestRulesBite proves that the rules can fail.
func TestRulesBite(t *testing.T) {
	bad := [][2]string{{"pkg/edge/agent", "pkg/core/store"}, {"pkg/core/fleet", "pkg/edge/state"}, {"pkg/api", "pkg/link"}, {"pkg/link/spool", "pkg/core/intake"}, {"pkg/oci", "cmd/edged"}}
	for _, b := range bad {
		found := false
		for _, r := range rules {
			found = found || violates(r, b[0], b[1])
		}
		if !found {
			t.Errorf("no rule forbids %s -> %s", b[0], b[1])
		}
	}
	if crossRoom("pkg/edge/update", "pkg/edge/network") == "" {
		t.Error("rooms may import each other unseen")
	}
}

func TestPackageDocs(t *testing.T) {
	docs, seen := map[string]string{}, map[string]bool{}
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, "_test.go") && !strings.HasPrefix(f.path, "tests/") {
			continue
		}
		dir := filepath.Dir(f.path)
		seen[dir] = true
		if f.ast.Doc != nil {
			docs[dir] += f.ast.Doc.Text()
		}
	}
	for dir := range seen {
		if !strings.Contains(docs[dir], "answers:") {
			t.Errorf("%s: the package comment does not say which question it answers", dir)
		}
	}
}

// TestFileLength keeps files readable: about 800 lines and no more.
func TestFileLength(t *testing.T) {
	for _, f := range sources(t) {
		b, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "\n"); n > 800 {
			t.Errorf("%s has %d lines: split it", f.path, n)
		}
	}
}

// TestMakeQuotes: what a person names for an image reaches the builder as it was named, with spaces.
func TestMakeQuotes(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("needs make")
	}
	cmd := exec.Command("make", "--silent", "--no-print-directory", "image", `GO=printf '[%s]'`, "PROFILE=vm", "OUT=a b", "PRELOAD=c d", "RELEASE=e f", "COUNTER=7")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	const want = "[run][./image][build][--profile][vm][--out][a b][--preload][c d][--version][e f][--counter][7]"
	if err != nil || string(out) != want {
		t.Errorf("make says %q, %v", out, err)
	}
}
