package server_test

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/tests/mutation"
)

type unlocks struct{ device, actor string }

func (u *unlocks) Unlock(_ context.Context, id api.DeviceID, name, challenge, actor string) (server.UnlockAnswer, error) {
	u.device, u.actor = name+" "+id.String(), actor
	return server.UnlockAnswer{Answer: "answer to " + challenge[:3], Challenge: "c1"}, nil
}

// TestWhoMayUnlock: admins and rescuers, and nobody else. A rescuer may do nothing else.
func TestWhoMayUnlock(t *testing.T) {
	u := &unlocks{}
	c := start(t, func(cfg *server.Config) { cfg.Unlocks = u })
	rescuer, err := c.store.CreateToken(t.Context(), "rita", store.Rescuer, time.Time{}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Name: "box", Tenant: api.DefaultTenant}, Spec: []byte(`{}`)}
	if _, err := c.store.Put(t.Context(), o, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.store.PutStatus(t.Context(), o.Key(), api.DeviceStatus{ID: api.DeviceID{5}}); err != nil {
		t.Fatal(err)
	}
	body := `{"challenge":"` + strings.Repeat("ABCDE-", 15) + `"}`
	for token, want := range map[string]int{c.admin: 200, rescuer: 200, c.viewer: 403, "": 401} {
		var out server.UnlockAnswer
		code, _ := c.callAs(token, "POST", "/api/v1/devices/box/unlock", body, &out)
		if code != want || code == 200 && (out.Answer != "answer to ABC" || !strings.HasPrefix(u.device, "box ")) {
			t.Errorf("%q: %d, want %d (%+v)", token, code, want, out)
		}
		if token == rescuer && u.actor != "rita" {
			t.Errorf("the actor is %q", u.actor)
		}
	}
	// What was cut on its way is judged by who reads challenges, whose words a person on the phone understands.
	if code, _ := c.callAs(rescuer, "POST", "/api/v1/devices/box/unlock", `{"challenge":"AAAA BBBB"}`, nil); code != 200 {
		t.Errorf("a short challenge: %d", code)
	}
	if code, _ := c.callAs(rescuer, "POST", "/api/v1/configs", configBody, nil); code != 403 {
		t.Errorf("a rescuer writes: %d", code)
	}
	if code, _ := c.callAs(rescuer, "GET", "/api/v1/devices/box", "", nil); code != 200 {
		t.Errorf("a rescuer reads: %d", code)
	}
	if code, _ := c.callAs(c.admin, "POST", "/api/v1/devices/other/unlock", body, nil); code != 404 {
		t.Errorf("a box that is not there: %d", code)
	}
}

// TestRoleCounts: in a build that does not look at the role, a viewer may; in one that does not
// look whether a card failed, people end what nobody told of.
func TestRoleCounts(t *testing.T) {
	checks := slices.DeleteFunc(mutation.Marked(t, "^TestWhoMayUnlock$", "auth.go"), func(c mutation.Check) bool { return c.Name != "role" })
	checks[0].Says = "200, want 403"
	mutation.Prove(t, append(checks, mutation.Marked(t, "^TestUncordon$", "devices.go")...)...)
}
