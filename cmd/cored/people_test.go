package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// A new core leaves a one-time token by which the first person becomes its administrator;
// whoever has its folder makes another. What seals second factors may be rotated meanwhile.
func TestFirstAdmin(t *testing.T) {
	r := start(t, t.TempDir())
	raw, err := os.ReadFile(r.c.o.data.firstAdmin())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(r.c.o.data.firstAdmin()); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("others read the token: ", info.Mode(), err)
	}
	setup := func(token, login string) (out struct{ Token string }, e *api.Error) {
		e = r.call("POST", "/api/v1/setup", `{"token":"`+token+`","login":"`+login+`","password":"correct horse battery","bearer":true}`, &out)
		return out, e
	}
	root, e := setup(strings.TrimSpace(string(raw)), "root")
	if e != nil {
		t.Fatal(e)
	}
	if _, e := setup(strings.TrimSpace(string(raw)), "eve"); e == nil || e.Code != api.Unauthorized {
		t.Errorf("the token is taken twice: %v", e)
	}
	cmd := adminTokenCommand()
	var another bytes.Buffer
	cmd.SetOut(&another)
	cmd.SetArgs([]string{"--data", string(r.c.o.data)})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, e := setup(strings.TrimSpace(another.String()), "second"); e != nil {
		t.Errorf("by cored admin-token: %v", e)
	}
	r.token = root.Token
	if e := r.call("POST", "/api/v1/factor", `{"password":"correct horse battery"}`, nil); e != nil {
		t.Fatal(e)
	}
	trial := func() (raw []byte) {
		if err := r.c.store.Database().QueryRowContext(t.Context(), "SELECT trial FROM people WHERE login = 'root'").Scan(&raw); err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before := trial()
	if err := r.c.store.Rotate(t.Context(), bytes.NewReader(bytes.Repeat([]byte("random and not the same as before "), 4))); err != nil {
		t.Fatal(err)
	}
	after := trial()
	if len(before) == 0 || bytes.Equal(before, after) {
		t.Error("a second factor is sealed by a key that is gone")
	}
	// It opens: the code is looked at, and found to be wrong.
	if e := r.call("PUT", "/api/v1/factor", `{"code":"nocode"}`, nil); e == nil || e.Field != "code" {
		t.Errorf("after the rotation: %v", e)
	}
}
