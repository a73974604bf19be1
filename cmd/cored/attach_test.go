package main

import (
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestWhereToAttach(t *testing.T) {
	c := &core{o: &options{attach: []string{"10.0.2.2:18883,18443", "core.example"}}}
	got, err := c.whereToAttach()
	want := []api.ParentRef{{Device: "core", Address: "10.0.2.2:18883", HTTPSPort: 18443}, {Device: "core", Address: "core.example:8883"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("%+v, %v", got, err)
	}
	c.o.attach = []string{"core.example:none"}
	if _, err := c.whereToAttach(); api.CodeOf(err) != api.Invalid {
		t.Errorf("no port: %v", err)
	}
}
