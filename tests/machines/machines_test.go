package machines

import (
	"bufio"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { wait.Leaks(m) }

// echo answers lines on the loopback.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func TestWire(t *testing.T) {
	w, err := newWire()
	if err != nil {
		t.Fatal(err)
	}
	w.lead(echo(t), echo(t), echo(t))
	defer w.close()
	c, err := net.Dial("tcp", loopback(w.https.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := bufio.NewReader(c)
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(c, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(patience time.Duration) (string, error) {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		line, err := answers.ReadString('\n')
		return strings.TrimSpace(line), err
	}
	say("one")
	if got, err := hear(time.Minute); got != "one" {
		t.Fatalf("heard %q, %v", got, err)
	}
	w.cut(true)
	w.cut(true)
	say("two")
	if got, err := hear(100 * time.Millisecond); err == nil {
		t.Errorf("a cut wire carried %q", got)
	}
	w.cut(false)
	if got, err := hear(time.Minute); got != "two" {
		t.Errorf("healed, it carried %q, %v", got, err)
	}
	if down, up := w.bytes(); down != 8 || up != 8 {
		t.Errorf("it counted %d down, %d up", down, up)
	}
}

// What a box finds on CONFIG is what a box takes, and the cards are those that it names.
func TestConfig(t *testing.T) {
	images := t.TempDir()
	for _, profile := range Profiles {
		if err := os.MkdirAll(filepath.Join(images, profile), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(images, profile, "disk.raw"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := New(Spec{Images: images, Dir: t.TempDir(), Boxes: Small()})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for _, name := range tree.Names() {
		b := tree.boxes[name]
		s, err := boot.ParseSettings([]byte(b.config("tj1.a.b.c")))
		if err != nil {
			t.Errorf("%s: %v in\n%s", name, err, b.config("tj1.a.b.c"))
			continue
		}
		if s.Name != name || s.Join.Token == "" || len(s.Network.Uplinks) != 2 {
			t.Errorf("%s: %+v", name, s)
		}
		if cards := b.cards(); (cards[0].Switch == nil) != (b.Parent == "core") || (cards[1].Switch != nil) != b.Relay {
			t.Errorf("%s: cards are %+v", name, cards)
		}
	}
	tree.Keys = "keys"
	for _, name := range tree.Names() {
		s, err := boot.ParseSettings([]byte(tree.boxes[name].config("")))
		if err != nil || s.Join.Token != "" || s.Join.Parent != "" || (len(s.Bootstrap) == 1) != (name == "relay-1") {
			t.Errorf("with a birth certificate %s has %+v, %v", name, s, err)
		}
	}
	if len(Missing(Spec{Images: t.TempDir(), Boxes: Small()})) != 2 {
		t.Error("images that are not there are not missed")
	}
}

// A scenario that is renamed does not leave make test unseen.
func TestCoreScenariosAreThere(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for _, name := range core {
		if !strings.Contains(all.String(), "func "+name+"(t *testing.T)") {
			t.Errorf("make test boots %s, which is not there", name)
		}
	}
}
