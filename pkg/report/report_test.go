package report

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var states = []api.AppState{api.Pending, api.Pulling, api.Starting, api.Running, api.Backoff, api.Failed, api.Exited, api.Stopping}

func drawStatus(t *rapid.T, name string) api.AppStatus {
	text := rapid.SampledFrom([]string{"", "", "exited with 1", "x: y; z"})
	state := rapid.SampledFrom(states)
	s := api.AppStatus{Name: name, Bundle: rapid.SampledFrom([]string{"", "v1", "sha256:AB", "sha256:" + strings.Repeat("0a", 32), "sha256:" + strings.Repeat("0A", 32)}).Draw(t, "bundle"),
		Rejected: rapid.SampledFrom([]string{"", "v2", "sha256:" + strings.Repeat("0b", 32)}).Draw(t, "rejected")}
	for i := range rapid.IntRange(0, 4).Draw(t, "services") {
		one := api.ServiceStatus{Name: fmt.Sprint("s", i), State: state.Draw(t, "state"), Message: text.Draw(t, "message"), Restarts: rapid.IntRange(0, 1000).Draw(t, "restarts"),
			Container: rapid.SampledFrom([]string{"", "other", name + "-s0-", name + "-s0-1a2b", name + "-s1-ff"}).Draw(t, "container"),
			Address:   rapid.SampledFrom([]string{"", "10.0.0.1"}).Draw(t, "address")}
		if rapid.Bool().Draw(t, "ended") {
			code := rapid.IntRange(0, 255).Draw(t, "exit code")
			one.ExitCode = &code
		}
		s.Services = append(s.Services, one)
	}
	s.State, s.Message = Sum(s.Services)
	if len(s.Services) == 0 || rapid.Bool().Draw(t, "a state of its own") {
		s.State, s.Message = state.Draw(t, "state"), text.Draw(t, "message")
	}
	return s
}

// What was taken apart comes together again, whatever other keys there are.
func TestJoinUndoesSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := map[string][]byte{"health": {0x80}, "app/": {0xa0}, "app/gone/web": {0xa0}, "app/a/left-over": {0xff}}
		var want []api.AppStatus
		for _, name := range []string{"a", "a-b", "c"} {
			s := drawStatus(t, name)
			want = append(want, s)
			if err := merge(entries, s); err != nil {
				t.Fatal(err)
			}
		}
		got, bad := Join(entries)
		if len(bad) > 0 || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v\nbad %v", got, want, bad)
		}
	})
}

func merge(entries map[string][]byte, s api.AppStatus) error {
	parts, err := Split(s)
	for key, value := range parts {
		entries[key] = value
	}
	return err
}

// A change of one service is a change of its own entry alone, also when the app's state
// follows from it.
func TestOneServiceIsOneEntry(t *testing.T) {
	of := func(state api.AppState, restarts int) map[string][]byte {
		s := api.AppStatus{Name: "demo", Bundle: "sha256:" + strings.Repeat("5e", 32), Services: []api.ServiceStatus{
			{Name: "web", State: state, Container: "demo-web-0123456789", Restarts: restarts, Address: "10.213.0.10"}, {Name: "cache", State: api.Running}}}
		s.State, s.Message = Sum(s.Services)
		out, err := Split(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before, after := of(api.Running, 0), of(api.Starting, 1)
	for key, value := range before {
		if same := bytes.Equal(value, after[key]); same != (key != "app/demo/web") {
			t.Errorf("%s: same is %v", key, same)
		}
	}
	if n := len(after["app/demo/web"]); n > 40 {
		t.Errorf("a service takes %d bytes: %x", n, after["app/demo/web"])
	}
}

func TestJoinReadsTheOlderFormAndWhatIsHalfThere(t *testing.T) {
	whole := api.AppStatus{Name: "web", State: api.Backoff, Bundle: "sha256:1", Services: []api.ServiceStatus{{Name: "s", State: api.Backoff, Message: "m"}}, Message: "s: m"}
	raw, err := encMode.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	got, bad := Join(map[string][]byte{"app/web": raw})
	if len(bad) > 0 || !reflect.DeepEqual(got, []api.AppStatus{whole}) {
		t.Errorf("the older form: %+v, bad %v", got, bad)
	}
	parts, err := Split(api.AppStatus{Name: "x", State: api.Running, Services: []api.ServiceStatus{{Name: "a", State: api.Running}, {Name: "b", State: api.Running}}})
	if err != nil {
		t.Fatal(err)
	}
	delete(parts, "app/x/b")
	if got, bad := Join(parts); len(bad) > 0 || got[0].State != api.Pending {
		t.Errorf("an app of which one service is not told yet: %+v, bad %v", got, bad)
	}
	parts["app/x/b"] = []byte{0xff}
	if got, bad := Join(parts); !slices.Equal(bad, []string{"app/x/b"}) || got[0].State != "" || len(got[0].Services) != 2 {
		t.Errorf("an app of which one service cannot be read: %+v, bad %v", got, bad)
	}
}

func FuzzJoin(f *testing.F) {
	for _, s := range []api.AppStatus{{Name: "a"}, {Name: "a", State: api.Running, Bundle: "sha256:" + strings.Repeat("00", 32), Services: []api.ServiceStatus{{Name: "s", State: api.Failed, Message: "m"}}}} {
		parts, err := Split(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(parts["app/a"], parts["app/a/s"])
		whole, err := encMode.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(whole, []byte{})
	}
	f.Add([]byte{0xf6}, []byte{0xf7})
	f.Add([]byte{0xa1, 0x07, 0x82, 0x61, 's', 0x61, 's'}, []byte{0xa0}) // a service twice
	f.Add([]byte{0xa1, 0x07, 0x9a, 0xff, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{0x81}, 1000))
	f.Fuzz(func(t *testing.T, head, service []byte) {
		entries := map[string][]byte{"app/a": head, "app/a/s": service}
		apps, bad := Join(entries)
		if len(apps) != 1 || apps[0].Name != "a" || len(apps[0].Services) > maxServices {
			t.Fatalf("%+v, bad %v", apps, bad)
		}
	})
}
