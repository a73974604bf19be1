package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestParents(t *testing.T) {
	for text, want := range map[string][]api.ParentRef{
		"10.0.0.1":                {{Address: "10.0.0.1:8883"}},
		"10.0.0.1:99":             {{Address: "10.0.0.1:99"}},
		"core.example:99,443":     {{Address: "core.example:99", HTTPSPort: 443}},
		"core.example,443":        {{Address: "core.example:8883", HTTPSPort: 443}},
		"[fd00::1]:99,443":        {{Address: "[fd00::1]:99", HTTPSPort: 443}},
		"[fd00::1]":               {{Address: "[fd00::1]:8883"}},
		" 10.0.0.1  10.0.0.2:90 ": {{Address: "10.0.0.1:8883"}, {Address: "10.0.0.2:90"}},
	} {
		if got, err := parseParents(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":99", "h:0", "h:99,", "h:99,x", "h:70000"} {
		if got, err := parseParents(text); api.CodeOf(err) != api.Invalid {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func FuzzParents(f *testing.F) {
	f.Add("10.0.0.1:8883,8443 [fd00::1]:1")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseParents(text)
		if err == nil && len(list) == 0 {
			t.Fatal("no parent and no error")
		}
	})
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "edged run"},
		{[]string{"version"}, 0, version},
		{[]string{"help"}, 0, "Exit status"},
		{[]string{"dance"}, 2, "not a command"},
		{[]string{"run"}, 2, "--parent"},
		{[]string{"run", "--parent", "10.0.0.1", "extra"}, 2, "extra"},
		{[]string{"run", "--wrong"}, 2, "wrong"},
		{[]string{"status", "--run", t.TempDir()}, 6, "is it running?"},
	} {
		var out bytes.Buffer
		if code := dispatch(context.Background(), c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.says) {
			t.Errorf("%v: exit %d, %q", c.args, code, out.String())
		}
	}
}

func TestRecordsOfNoBox(t *testing.T) {
	var out bytes.Buffer
	dir := filepath.Join(t.TempDir(), "data")
	if code := dispatch(context.Background(), []string{"records", "--data", dir, "--run", dir}, &out, &out); code == 0 || !strings.Contains(out.String(), "no box has lived") {
		t.Errorf("exit %d, %q", code, out.String())
	}
}

func TestLabels(t *testing.T) {
	o, err := parseOptions([]string{"--parent", "core.example", "--labels", "rack=3, hall=b,empty="}, io.Discard)
	if err != nil || !reflect.DeepEqual(o.labels, map[string]string{"rack": "3", "hall": "b", "empty": ""}) {
		t.Errorf("%v %v", o.labels, err)
	}
	b := &box{o: o}
	if got := b.labels(api.Hardware{Arch: "amd64"}); got[api.Reserved+"config.rack"] != "3" || got["rack"] != "" || got[api.Reserved+"arch"] != "amd64" {
		t.Errorf("%v", got)
	}
	for _, text := range []string{"rack", "=3", "a=b,,c=d"} {
		if _, err := parseOptions([]string{"--parent", "core.example", "--labels", text}, io.Discard); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
