package machines

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/lab"
)

// TestFirstBootWithoutToken boots a machine that knows nobody, under a relay: the relay
// answers its question by mDNS, a person types the code that it shows, and it is a member,
// also after the next boot.
func TestFirstBootWithoutToken(t *testing.T) {
	needImage(t, "amd64")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	tree, err := New(Spec{Bin: programs(t), Images: images(), Dir: t.TempDir(), CoredArgs: []string{"--listen-bootstrap", "127.0.0.1:0"},
		Boxes: []BoxSpec{{Name: "relay-1", Parent: "core", Role: "access", Relay: true}, {Name: "field-1", Parent: "relay-1", Alone: true}}, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"relay-1", "field-1"} {
				if m := tree.Machine(name); m != nil {
					t.Logf("the serial line of %s:\n%s", name, m.Console.Tail(60))
				}
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, step := range []func(context.Context) error{tree.StartCore, tree.Join, tree.StartBoxes} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	var code string
	if err := lab.Until(ctx, "field-1 shows its code", patience, func(ctx context.Context) error {
		b, err := tree.boxes["field-1"].Local(ctx, "/status")
		if err != nil {
			return err
		}
		_, rest, ok := strings.Cut(string(b), "its pairing code is ")
		if !ok || len(rest) < 14 {
			return fmt.Errorf("it says %.300s", b)
		}
		code = rest[:14]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the code %s is shown", code)
	if err := lab.Until(ctx, "the core hears of it by the relay", patience, func(ctx context.Context) error {
		_, err := tree.Edgectl(ctx, "", "device", "approve", code, "--labels", "role=field")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	online := func(ctx context.Context) error {
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   struct {
					Online bool
					Parent string
				}
			}
		}
		out, err := tree.Edgectl(ctx, "", "get", "devices", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		for _, d := range list.Items {
			if d.Metadata.Name == "field-1" && d.Status.Online && d.Status.Parent != "core" {
				return nil
			}
		}
		return fmt.Errorf("%+v", list.Items)
	}
	if err := lab.Until(ctx, "field-1 is a member under the relay", patience, online); err != nil {
		t.Fatal(err)
	}
	t.Logf("a member %.0f s after the boot", time.Since(began).Seconds())

	// The next boot finds what the first one left.
	if err := tree.boxes["field-1"].PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := tree.boxes["field-1"].Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(ctx, "field-1 is back", patience, func(ctx context.Context) error {
		b, err := tree.boxes["field-1"].Local(ctx, "/status")
		if err != nil {
			return err
		}
		var st struct {
			Name   string
			Online bool
		}
		if err := json.Unmarshal(b, &st); err != nil || !st.Online || st.Name != "field-1" {
			return fmt.Errorf("it says %.300s (%v)", b, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("back %.0f s after the first boot", time.Since(began).Seconds())
}
