package relay

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

// expecting is a parent's side of pages: boxes and their tags.
type expecting struct {
	mu    sync.Mutex
	boxes map[string]string
	// sent counts the boxes that were told in full, most is the largest page in bytes.
	sent, most, pages int
}

func (e *expecting) page(w http.ResponseWriter, q identity.Greeting) {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := identity.Ahead{Boxes: map[string]identity.AheadBox{}, Makers: [][]byte{{1}}}
	n, last := 0, ""
	for _, serial := range slices.Sorted(maps.Keys(e.boxes)) {
		if serial <= q.Page.After {
			continue
		}
		if n == identity.AheadBoxes {
			out.Next = last
			break
		}
		n, last = n+1, serial
		if q.Page.Have[serial] == e.boxes[serial] {
			out.Same = append(out.Same, serial)
			continue
		}
		e.sent++
		out.Boxes[serial] = identity.AheadBox{Tag: e.boxes[serial], Answer: fmt.Appendf(nil, "{%q:%q}", serial, e.boxes[serial] /* as long as a real one: */ +strings.Repeat("x", 8<<10)), Refs: []identity.AheadRef{{Repo: "default/app", Digest: "sha256:1"}}}
	}
	text, err := json.Marshal(out)
	if err != nil {
		panic(err) // of plain types
	}
	e.pages++
	e.most = max(e.most, len(text))
	_, _ = w.Write(text)
}

func (e *expecting) change(f func(boxes map[string]string)) (sent, pages int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(e.boxes)
	return e.sent, e.pages
}

// A thousand expected boxes come to a relay in pages, each once; of a change, that alone comes,
// and what is gone is forgotten. All of it outlives a restart.
func TestManyExpected(t *testing.T) {
	const many = 1000
	e := &expecting{boxes: map[string]string{}}
	for i := range many {
		e.boxes[fmt.Sprintf("SN-%03d", i)] = "a"
	}
	p := &parent{pages: e.page}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	g := &greeter{s: &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}}, attach: func(*http.Request) []api.ParentRef { return nil },
		ahead: openAhead(filepath.Join(t.TempDir(), "greetings"), slog.New(slog.DiscardHandler))}
	fetch := func() {
		t.Helper()
		if _, err := g.fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	told := func(serial, tag string) {
		t.Helper()
		if got := string(g.ahead.answer(serial)); !strings.HasPrefix(got, fmt.Sprintf("{%q:%q", serial, tag)[:len(serial)+4+len(tag)]) {
			t.Errorf("%s is told %.40q, want %q", serial, got, tag)
		}
	}
	fetch()
	told("SN-000", "a")
	told("SN-999", "a")
	sent, pages := e.change(func(map[string]string) {})
	if sent != many || pages != (many+identity.AheadBoxes-1)/identity.AheadBoxes {
		t.Errorf("%d boxes in %d pages", sent, pages)
	}
	if e.most > maxAheadPage/8 {
		t.Errorf("a page of %d bytes", e.most)
	}
	e.change(func(b map[string]string) {
		b["SN-500"], b["SN-500a"] = "b", "a"
		delete(b, "SN-000")
		delete(b, "SN-563")
		delete(b, "SN-999")
	})
	fetch()
	if again, _ := e.change(func(map[string]string) {}); again != sent+2 {
		t.Errorf("of a change of two boxes %d are sent", again-sent)
	}
	told("SN-500", "b")
	told("SN-500a", "a")
	for _, gone := range []string{"SN-000", "SN-563", "SN-999"} {
		if _, ok := g.ahead.expects(gone); ok || g.ahead.answer(gone) != nil {
			t.Errorf("%s is still expected", gone)
		}
	}
	if needs := g.ahead.needs(); len(needs) != 1 {
		t.Errorf("what all need is pinned as %v", needs)
	}
	g.ahead = openAhead(g.ahead.dir, g.ahead.log)
	told("SN-500", "b")
	if makers, ok := g.ahead.expects("SN-001"); !ok || len(makers) != 1 {
		t.Errorf("after a restart: %v %v", makers, ok)
	}
	if _, before := e.change(func(b map[string]string) { clear(b) }); before == 0 {
		t.Error("no pages")
	}
	fetch()
	files, err := os.ReadDir(g.ahead.dir)
	if err != nil || len(files) != 1 { // the makers'
		t.Errorf("%d files are left (%v)", len(files), err)
	}
	if needs := g.ahead.needs(); len(needs) != 0 {
		t.Errorf("nobody is expected, and %v is pinned", needs)
	}
}

// A parent that leads round in circles, or names ever more boxes, is left.
func TestEndlessPages(t *testing.T) {
	var answer func(after string) identity.Ahead
	p := &parent{pages: func(w http.ResponseWriter, q identity.Greeting) { _ = json.NewEncoder(w).Encode(answer(q.Page.After)) }}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	g := &greeter{s: &Server{cfg: Config{Parent: p, Log: slog.New(slog.DiscardHandler)}}, attach: func(*http.Request) []api.ParentRef { return nil },
		ahead: openAhead(filepath.Join(t.TempDir(), "greetings"), slog.New(slog.DiscardHandler))}
	answer = func(string) identity.Ahead { return identity.Ahead{Next: "b"} }
	if _, err := g.fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "goes on") {
		t.Errorf("in circles: %v", err)
	}
	for i := range maxAheadBoxes - 1 {
		g.ahead.boxes[fmt.Sprintf("a%05d", i)] = keptBox{}
	}
	n := 0
	answer = func(after string) identity.Ahead {
		n++
		serial := fmt.Sprintf("b%05d", n)
		return identity.Ahead{Boxes: map[string]identity.AheadBox{serial: {Answer: json.RawMessage("{}")}}, Same: slices.Collect(maps.Keys(g.ahead.boxes)), Next: serial}
	}
	if _, err := g.fetch(t.Context()); err != nil || n != 1 {
		t.Errorf("%d pages: %v", n, err)
	}
}

// Torn files, and those of the release before, are no more than fetched anew.
func TestAheadTorn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "greetings")
	log := slog.New(slog.DiscardHandler)
	a := openAhead(dir, log)
	if err := a.take("", identity.Ahead{Boxes: map[string]identity.AheadBox{"SN-1": {Answer: json.RawMessage("{}")}, "SN-2": {Answer: json.RawMessage("{}")}}}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(a.path("SN-1"), 5); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a.path("SN-2"), a.path("SN-3")); err != nil {
		t.Fatal(err)
	}
	if a = openAhead(dir, log); len(a.boxes) != 0 {
		t.Errorf("%v", a.boxes)
	}
	old := dir + ".json"
	if err := os.WriteFile(old, []byte(`{"boxes":{"SN-1":{"answer":{}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &parent{}
	p.away.Store(true)
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	s := &Server{cfg: Config{Parent: p, Log: log}}
	s.Greeter(t.Context(), dir, func(*http.Request) []api.ParentRef { return nil })
	wait.Until(t, "the old file goes", func() bool { _, err := os.Stat(old); return os.IsNotExist(err) })
}
