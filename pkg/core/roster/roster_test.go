package roster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/store/storetest"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/tests/wait"
)

type hall struct {
	t     *testing.T
	db    *store.SQL
	r     *Roster
	clock *storetest.Clock
}

func start(t *testing.T) *hall {
	t.Helper()
	clock := storetest.NewClock()
	var uid atomic.Int64
	db, err := store.Open(t.Context(), store.Config{Now: clock.Now, NewUID: func() string { return fmt.Sprint("uid", uid.Add(1)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	r, err := Open(t.Context(), Config{Store: db, Fingerprint: [32]byte{7}, Came: func(api.DeviceID) {}, Gone: func(api.DeviceID) {}, Now: clock.Now, Random: rand.Reader, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &hall{t, db, r, clock}
}

// mint makes a join token as the server would.
func (h *hall) mint(name string, spec api.JoinTokenSpec) identity.JoinToken {
	h.t.Helper()
	raw, _ := json.Marshal(spec)
	o := &api.Object{Kind: api.KindJoinToken, Metadata: api.Meta{Tenant: "default", Name: name}, Spec: raw}
	status, show, err := h.r.MintToken(nil, o)
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := h.db.Put(h.t.Context(), o, store.PutOptions{Status: status})
	if err != nil {
		h.t.Fatal(err)
	}
	token, err := identity.ParseJoinToken(show(out.Metadata.UID))
	if err != nil || token.RootFP != [32]byte{7} {
		h.t.Fatal(token, err)
	}
	if bytes.Contains(out.Status, []byte(token.Secret)) {
		h.t.Fatal("the secret is stored")
	}
	return token
}

func newBox(t *testing.T, token identity.JoinToken, name string) Applicant {
	t.Helper()
	der := func() ([]byte, *ecdsa.PublicKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return b, &key.PublicKey
	}
	public, key := der()
	seal, _ := der()
	return Applicant{TokenID: token.ID, Secret: token.Secret, Device: identity.KeyID(key), PublicKey: public, SealKey: seal, Name: name,
		Labels: map[string]string{api.Reserved + "arch": "arm64", "role": "admin"}, Hardware: api.Hardware{Arch: "arm64", CPUs: 4}}
}

func TestEnrol(t *testing.T) {
	h := start(t)
	ctx := t.Context()
	token := h.mint("boxes", api.JoinTokenSpec{Labels: map[string]string{"role": "field"}, Site: "hill", AutoApprove: true, Uses: 2})
	box := newBox(t, token, "Box One!")
	grant, err := h.r.Enrol(ctx, box)
	if err != nil || grant.Name != "box-one" || !grant.Approved || grant.Labels["role"] != "field" || grant.Labels[api.Reserved+"arch"] != "arm64" {
		t.Fatalf("%+v %v", grant, err)
	}
	if _, ok := h.r.PublicKey(box.Device); !ok {
		t.Fatal("an approved box is not active")
	}
	// The reply was lost: the same again uses nothing up.
	if again, err := h.r.Enrol(ctx, box); err != nil || again.Name != grant.Name {
		t.Fatalf("%+v %v", again, err)
	}
	twin := newBox(t, token, "box-one")
	second, err := h.r.Enrol(ctx, twin)
	if err != nil || second.Name != "box-one-"+twin.Device.String()[:6] {
		t.Fatalf("%+v %v", second, err)
	}
	if _, err := h.r.Enrol(ctx, newBox(t, token, "third")); api.CodeOf(err) != api.Unauthorized {
		t.Fatalf("a third use of two: %v", err)
	}
	// A restart knows them all.
	r, err := Open(ctx, h.r.cfg)
	if err != nil || r.Len() != 2 || !r.Active(twin.Device) {
		t.Fatalf("%d boxes, %v", r.Len(), err)
	}
}

func TestRefusals(t *testing.T) {
	h := start(t)
	ctx := t.Context()
	expires := h.clock.Now().Add(time.Hour)
	token, other := h.mint("a", api.JoinTokenSpec{Expires: &expires}), h.mint("b", api.JoinTokenSpec{})
	box := newBox(t, token, "")
	if g, err := h.r.Enrol(ctx, box); err != nil || g.Approved || g.Name != box.Device.String() {
		t.Fatalf("%+v %v", g, err)
	}
	if h.r.Active(box.Device) {
		t.Fatal("active before it is approved")
	}
	key, _ := h.r.ObjectOf(box.Device)
	if _, err := h.r.Approve(ctx, key); err != nil || !h.r.Active(box.Device) {
		t.Fatalf("approve: %v", err)
	}
	wrong := newBox(t, token, "x")
	wrong.Secret = other.Secret
	elsewhere := box
	elsewhere.TokenID, elsewhere.Secret = other.ID, other.Secret
	for name, c := range map[string]struct {
		a    Applicant
		want api.Code
	}{"wrong secret": {wrong, api.Unauthorized}, "another token": {elsewhere, api.Conflict}} {
		if _, err := h.r.Enrol(ctx, c.a); api.CodeOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	object, err := h.db.Get(ctx, key)
	if err != nil || h.r.MayDelete(object) == nil {
		t.Fatalf("a device at work may be deleted (%v)", err)
	}
	retired, err := h.r.Retire(ctx, key)
	if err != nil || h.r.Active(box.Device) || h.r.MayDelete(retired) != nil {
		t.Fatalf("retire: %v", err)
	}
	for name, err := range map[string]error{"enrol": second(h.r.Enrol(ctx, box)), "renew": second(h.r.Renew(ctx, box)), "renew of a stranger": second(h.r.Renew(ctx, wrong))} {
		if api.CodeOf(err) != api.Forbidden {
			t.Errorf("%s after retirement: %v", name, err)
		}
	}
	if _, err := h.r.Approve(ctx, key); api.CodeOf(err) != api.Conflict {
		t.Errorf("approve after retirement: %v", err)
	}
	h.clock.Advance(2 * time.Hour)
	if _, err := h.r.Enrol(ctx, newBox(t, token, "late")); api.CodeOf(err) != api.Unauthorized {
		t.Errorf("expired: %v", err)
	}
}

// Many boxes at once do not get more out of a token than it has, nor one name twice.
func TestEnrolTogether(t *testing.T) {
	h := start(t)
	token := h.mint("few", api.JoinTokenSpec{Uses: 5})
	var in atomic.Int64
	var wg sync.WaitGroup
	for range 12 {
		box := newBox(t, token, "same")
		wg.Go(func() {
			switch _, err := h.r.Enrol(t.Context(), box); {
			case err == nil:
				in.Add(1)
			case api.CodeOf(err) != api.Unauthorized:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	devices, _, _, err := h.db.List(t.Context(), store.Query{Kind: api.KindDevice})
	if in.Load() != 5 || len(devices) != 5 || h.r.Len() != 5 || err != nil {
		t.Fatalf("%d let in, %d objects, %d known, %v; want 5", in.Load(), len(devices), h.r.Len(), err)
	}
}

// What is changed or deleted behind the roster's back reaches it.
func TestFollow(t *testing.T) {
	h := start(t)
	box := newBox(t, h.mint("t", api.JoinTokenSpec{AutoApprove: true}), "b")
	if _, err := h.r.Enrol(t.Context(), box); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.r.Run(ctx) }()
	key, _ := h.r.ObjectOf(box.Device)
	o, err := h.db.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	o.Spec = json.RawMessage(`{"retired":true}`)
	if _, err := h.db.Put(t.Context(), o, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "the retired box is out", func() bool { return !h.r.Active(box.Device) })
	if err := h.db.Delete(t.Context(), key, 0); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "nobody is left", func() bool { return h.r.Len() == 0 })
	cancel()
	if err := wait.For(t, "the loop's end", done); !errors.Is(err, context.Canceled) {
		t.Fatal("the loop ended: ", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A core that was restored takes back who has a certificate from after its backup, and
// lets it wait for a person; others it does not know stay out.
func TestReadmission(t *testing.T) {
	h := start(t)
	ctx := t.Context()
	token := h.mint("a", api.JoinTokenSpec{AutoApprove: true})
	box := newBox(t, token, "late")
	box.Tenant, box.Issued, box.TokenID, box.Secret = api.DefaultTenant, h.clock.Now(), "", ""
	if _, err := h.r.Renew(ctx, box); api.CodeOf(err) != api.Forbidden {
		t.Fatalf("a stranger at a core that was never restored: %v", err)
	}
	h.r.cfg.Restored = h.clock.Now().Add(-time.Hour)
	old, lost := box, box
	old.Issued = h.r.cfg.Restored.Add(-2 * issuedEarly)
	lost.Tenant = "gone"
	for name, a := range map[string]Applicant{"certified long before the backup": old, "of a tenant that is not there": lost} {
		if _, err := h.r.Renew(ctx, a); api.CodeOf(err) != api.Forbidden || h.r.Len() != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for range 2 { // the reply may be lost
		if g, err := h.r.Renew(ctx, box); err != nil || g.Name != "late" || g.Tenant != api.DefaultTenant || g.Approved || h.r.Len() != 1 {
			t.Fatalf("%+v %v", g, err)
		}
	}
	if h.r.Active(box.Device) {
		t.Fatal("back in service without a person")
	}
	key, _ := h.r.ObjectOf(box.Device)
	if _, err := h.r.Approve(ctx, key); err != nil || !h.r.Active(box.Device) {
		t.Fatalf("approve: %v", err)
	}
	if g, err := h.r.Renew(ctx, box); err != nil || !g.Approved {
		t.Fatalf("%+v %v", g, err)
	}
	if _, err := h.r.Retire(ctx, key); err != nil {
		t.Fatal(err)
	}
	if _, err := h.r.Renew(ctx, box); api.CodeOf(err) != api.Forbidden {
		t.Errorf("retired, and let in: %v", err)
	}
}
