package workload

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func TestBindsStayInTheAppsOwnFolder(t *testing.T) {
	f := folders{root: t.TempDir(), run: t.TempDir()}
	for _, source := range []string{".", "a", "a/b", "./c"} {
		got, err := f.bind("app", source)
		if err != nil {
			t.Errorf("%q: %v", source, err)
		} else if st, err := os.Stat(got); err != nil || !st.IsDir() {
			t.Errorf("%q is not a folder: %v", source, err)
		}
	}
	base := f.data("app")
	for name, target := range map[string]string{"out": "/etc", "up": "../..", "in": "a"} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, source := range []string{"/etc", "..", "../x", "a/../../x", "out", "out/passwd", "up", "up/x", "in"} {
		if got, err := f.bind("app", source); err == nil {
			t.Errorf("%q was allowed: %s", source, got)
		}
	}
}

func TestASetOfFilesChangesAllAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	set := func(version string, names ...string) map[string][]byte {
		out := map[string][]byte{}
		for _, n := range names {
			out[n] = []byte(version)
		}
		return out
	}
	if err := writeSet(dir, set("0", "a", "b"), api.Mount{}); err != nil {
		t.Fatal(err)
	}
	stop, torn := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(torn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// A reader that holds the folder of one version sees that version alone.
			version, err := os.Readlink(filepath.Join(dir, "..data"))
			if err != nil {
				torn <- err
				return
			}
			a, errA := os.ReadFile(filepath.Join(dir, version, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, version, "b"))
			if errA == nil && errB == nil && !bytes.Equal(a, b) {
				torn <- fmt.Errorf("a is %q, b is %q", a, b)
				return
			}
			if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
				torn <- fmt.Errorf("a reads %q, %v", b, err)
				return
			}
		}
	}()
	for i := range 200 {
		if err := writeSet(dir, set(fmt.Sprint(i), "a", "b", fmt.Sprint("only-", i)), api.Mount{}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-torn; err != nil {
		t.Error(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 5 { // ..data, its version, a, b, only-199
		t.Errorf("left in the folder: %v", entries)
	}
	for _, name := range []string{"../x", "..data", "", ".", "/x", "a/../b", "a//b", "..v/x"} {
		if err := writeSet(dir, set("x", name), api.Mount{}); err == nil {
			t.Errorf("a file called %q was written", name)
		}
	}
	if err := writeSet(dir, set("x", "a/b/c", "a"), api.Mount{}); err == nil {
		t.Error("a is a file and a folder")
	}
}

// A set may hold folders; they come, change and go as its files do, and so does all of it.
func TestASetOfFilesHasFolders(t *testing.T) {
	f := folders{root: t.TempDir(), run: t.TempDir()}
	svc := api.Service{Mounts: []api.Mount{{Kind: api.MountConfig, Source: "c", Target: "/etc/nginx"}}}
	seen := func(files map[string][]byte) map[string]string {
		t.Helper()
		a := &App{Bundle: api.Bundle{App: "app"}, Configs: map[string]api.ConfigData{"c": {Files: files}}}
		mounts, err := f.writeFiles(a, "id", &svc)
		if err != nil || len(mounts) != 1 {
			t.Fatalf("%v, %v", mounts, err)
		}
		if st, err := os.Stat(mounts[0].Source); err != nil || !st.IsDir() {
			t.Fatalf("not a folder: %v", err)
		}
		got := map[string]string{}
		for _, pattern := range []string{"*", "*/*"} {
			paths, _ := filepath.Glob(filepath.Join(mounts[0].Source, pattern))
			for _, p := range paths {
				name, _ := filepath.Rel(mounts[0].Source, p)
				if b, err := os.ReadFile(p); err == nil && !strings.HasPrefix(name, "..") {
					got[name] = string(b)
				}
			}
		}
		return got
	}
	for _, want := range []map[string]string{
		{"nginx.conf": "1", "conf.d/site.conf": "a", "conf.d/other.conf": "b"},
		{"nginx.conf": "1", "conf.d/site.conf": "changed"},
		{"conf.d": "a file now"},
		{},
		{"conf.d/site.conf": "again"},
	} {
		files := map[string][]byte{}
		for name, text := range want {
			files[name] = []byte(text)
		}
		if len(files) == 0 {
			files = nil // as an emptied Config comes over the wire
		}
		if got := seen(files); !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// One mount that cannot be written leaves the others alone, is told by name, and no more
// once it can.
func TestFilesThatCannotBeWrittenAreNamed(t *testing.T) {
	m := &Manager{cfg: withDefaults(Config{}), root: folders{root: t.TempDir(), run: t.TempDir()}, warnings: map[string]api.Warning{}, instances: map[string]*tracked{}, changed: make(chan struct{}, 1)}
	svc := api.Service{Name: "s", NetworkMode: "none", Mounts: []api.Mount{
		{Kind: api.MountConfig, Source: "a", Target: "/a"}, {Kind: api.MountSecret, Source: "b/key", Target: "/b"},
	}}
	set := func(pass string) {
		m.apps = []App{{Bundle: api.Bundle{App: "app"}, Configs: map[string]api.ConfigData{"a": {Files: map[string][]byte{"f": []byte(pass)}}}, Secrets: map[string]api.ConfigData{"b": {Files: map[string][]byte{"key": []byte(pass)}}}}}
		m.refreshFiles()
	}
	m.instances["id"] = &tracked{in: instance{ID: "id", Key: serviceKey{"app", "s"}, Phase: phaseRunning}, svc: svc}
	inTheWay := filepath.Join(m.root.files("app", "id"), "mount-0")
	if err := os.MkdirAll(filepath.Dir(inTheWay), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inTheWay, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	set("new")
	if b, err := os.ReadFile(filepath.Join(m.root.secrets("app", "id"), "mount-1")); err != nil || string(b) != "new" {
		t.Errorf("the secret is %q, %v", b, err)
	}
	if w := m.Warnings(); len(w) != 1 || w[0].Name != "config-not-written" || !strings.Contains(w[0].Message, "app/s: config a at /a") {
		t.Errorf("warnings: %+v", w)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	m.refreshFiles()
	if b, err := os.ReadFile(filepath.Join(inTheWay, "f")); err != nil || string(b) != "new" || len(m.Warnings()) != 0 {
		t.Errorf("%q, %v, %+v", b, err, m.Warnings())
	}
}

func TestHostsFile(t *testing.T) {
	self := peer{Service: "web", Hostname: "web", Networks: []string{"front", "back"}, Addrs: []string{"10.0.1.2", "10.0.2.2"}}
	got := string(hostsFile(self, []peer{
		{Service: "other", Hostname: "other", Networks: []string{"alone"}, Addrs: []string{"10.0.3.2"}},
		{Service: "db", Hostname: "main-db", Networks: []string{"back"}, Addrs: []string{"10.0.2.3"}},
		{Service: "agent", Hostname: "agent", Host: true},
	}))
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.1.2\tweb\n10.0.1.1\tagent\n10.0.2.3\tdb main-db\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestWhatCannotRunIsRefusedByName(t *testing.T) {
	digest := "acme/app@sha256:" + strings.Repeat("0", 64)
	app := func(name string, s ...api.Service) App { return App{Bundle: api.Bundle{App: name, Services: s}} }
	port := []api.Port{{Host: 80, Container: 80, Protocol: "tcp"}}
	m := &Manager{}
	want := m.effective([]App{
		app("one", api.Service{Name: "s", Image: digest, Ports: port}),
		app("two", api.Service{Name: "s", Image: digest, Ports: port}),
		app("../three", api.Service{Name: "s", Image: digest}),
		app("four", api.Service{Name: "s", Image: "acme/app:latest"}),
		app("five", api.Service{Name: "s", Image: digest, Mounts: []api.Mount{{Kind: api.MountVolume, Source: "v", Target: "/v"}}}),
	})
	for i, text := range []string{"", "host port 80/tcp is taken by one/s", "cannot be an app's name", "not named by digest", `volume "v" is not declared`} {
		if got := want[i].Refused; !strings.Contains(got, text) || (text == "") != (got == "") {
			t.Errorf("%s: %q, want %q", want[i].Name, got, text)
		}
	}
}

// The hash names what makes a container another one, and nothing else.
func TestHashOfAService(t *testing.T) {
	base := api.Service{Name: "s", Image: "a@sha256:0", Env: map[string]string{"A": "1"}}
	same := []func(*api.Service){
		func(s *api.Service) { s.Restart.Policy = "always" },
		func(s *api.Service) { s.Health = &api.HealthCheck{Test: []string{"x"}} },
		func(s *api.Service) { s.DependsOn = []api.Dependency{{Service: "o"}} },
		func(s *api.Service) { s.StopGrace = seconds(3) },
	}
	other := []func(*api.Service){
		func(s *api.Service) { s.Image = "b@sha256:0" },
		func(s *api.Service) { s.Env = map[string]string{"A": "2"} },
		func(s *api.Service) { s.Mounts = []api.Mount{{Kind: api.MountConfig, Inline: "x", Target: "/x"}} },
		func(s *api.Service) { s.ReadOnly = true },
	}
	rapid.Check(t, func(t *rapid.T) {
		s := base
		for _, f := range same {
			if rapid.Bool().Draw(t, "apply") {
				f(&s)
			}
		}
		if hashService(s) != hashService(base) {
			t.Fatalf("%+v is another container", s)
		}
		rapid.SampledFrom(other).Draw(t, "change")(&s)
		if hashService(s) == hashService(base) {
			t.Fatalf("%+v is the same container", s)
		}
	})
	app := App{Bundle: api.Bundle{App: "a", Services: []api.Service{{Name: "s", EnvConfig: []string{"c"}, Env: map[string]string{"A": "own"}}}}, Configs: map[string]api.ConfigData{"c": {Env: map[string]string{"A": "1", "B": "1"}}}}
	if env := effectiveService(&app, 0).Env; env["A"] != "own" || env["B"] != "1" {
		t.Errorf("environment: %v", env)
	}
}

func TestLogsTail(t *testing.T) {
	m := &Manager{root: folders{root: t.TempDir()}}
	dir := filepath.Join(m.root.logs("a", "s"), "c1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for i := range 100 {
		fmt.Fprintf(&b, "%d oF line %d\n", time.Now().UnixMicro(), i)
	}
	b.WriteString("1795372466121409 oP long \n1795372466121409 oF line\n17953")
	if err := os.WriteFile(filepath.Join(dir, "00000000.log"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for tail, lines := range map[int]int{-1: 101, 0: 0, 5: 4} { // the long line is kept in two pieces
		var out strings.Builder
		if err := m.Logs(context.Background(), "a", "s", false, tail, &out); err != nil || strings.Count(out.String(), "\n") != lines {
			t.Errorf("tail %d: %v\n%s", tail, err, out.String())
		}
	}
	if err := m.Logs(context.Background(), "a", "../s", false, -1, &b); api.CodeOf(err) != api.Invalid {
		t.Errorf("a path was taken for a service: %v", err)
	}
	if err := m.Logs(context.Background(), "a", "none", false, -1, &b); api.CodeOf(err) != api.NotFound {
		t.Errorf("logs of nothing: %v", err)
	}
}

func FuzzLogLine(f *testing.F) {
	f.Add([]byte("1795372466121409 oF text\n"))
	f.Add([]byte("1795372466121409 eP \n"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, stream, _, text, ok := parseLine(line); ok && (stream != 'o' && stream != 'e' || len(text) > len(line)) {
			t.Fatalf("%q", line)
		}
		r := &logReader{out: bufio.NewWriter(&bytes.Buffer{})}
		if err := r.write(line); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRuntimeBeside(t *testing.T) {
	dir := t.TempDir()
	helper, shim := filepath.Join(dir, "edged-log"), filepath.Join(dir, "edged-shim")
	if got := runtimeBeside(helper); got != "io.containerd.runc.v2" {
		t.Errorf("without edged-shim: %s", got)
	}
	if err := os.WriteFile(shim, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := runtimeBeside(helper); got != shim {
		t.Errorf("with edged-shim: %s", got)
	}
}
