package scenario

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link/stream"
	"tributary.dev/tributary/tests/lab"
)

// certLife is long enough for a busy machine to renew within its last third.
const certLife = 45 * time.Second

// TestRenewal plays months of certificates in minutes: a relay renews at the core and a
// device through the relay, again and again, and nobody falls out of the tree. Then both
// sleep until their certificates have ended: these open nothing, but for a renewal, and a
// device's place at its own relay.
func TestRenewal(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := raise(t, pair(), "--device-cert-life", certLife.String())
	ctx := t.Context()
	must(t, s.Raise(ctx))
	relay, field := s.Lab.Boxes["agg-1"], s.Lab.Boxes["field-1"]
	for _, box := range []*lab.Box{relay, field} {
		must(t, renewsInTime(ctx, t, box))
	}
	must(t, online(ctx, s, "agg-1", "field-1"))

	relay.KillEdged()
	field.KillEdged()
	for _, box := range []*lab.Box{relay, field} {
		must(t, lab.Until(ctx, box.Name+"'s certificate ends", 2*certLife, func(context.Context) error {
			me, err := whoIs(box)
			if err == nil && time.Now().Before(me.Expires()) {
				err = fmt.Errorf("it lives until %s", me.Expires())
			}
			return err
		}))
	}
	for _, box := range []*lab.Box{relay, field} { // the parent first, which the other needs
		me, err := whoIs(box)
		must(t, err)
		opensNothing(ctx, t, box, me)
		must(t, box.StartEdged(ctx))
		must(t, lab.Until(ctx, box.Name+" has renewed", 2*s.Wait, func(context.Context) error {
			now, err := whoIs(box)
			if err == nil && !now.Expires().After(me.Expires()) {
				err = errors.New("it has the old certificate")
			}
			return err
		}))
		must(t, online(ctx, s, box.Name))
	}
	must(t, attached(ctx, s, "field-1", "agg-1"))
}

func whoIs(box *lab.Box) (*identity.Identity, error) {
	return identity.Load(filepath.Join(box.Data(), "identity"))
}

// renewsInTime waits for a certificate that was issued while the one before it lived.
func renewsInTime(ctx context.Context, t *testing.T, box *lab.Box) error {
	last, err := whoIs(box)
	if err != nil {
		return err
	}
	return lab.Until(ctx, box.Name+" renews in time", 6*certLife, func(context.Context) error {
		now, err := whoIs(box)
		if err != nil {
			return err
		}
		before := last
		if last = now; !now.Expires().After(before.Expires()) {
			return errors.New("it has not renewed")
		}
		// Both live equally long, so one was issued before the other's end if they overlap.
		if now.Cert[0].NotBefore.After(before.Expires()) {
			return errors.New("it renewed after its end")
		}
		t.Logf("%s renewed %s before its end", box.Name, before.Expires().Sub(now.Expires().Add(-certLife)))
		return nil
	})
}

// opensNothing tries an ended certificate at the parent's MQTT and HTTPS.
func opensNothing(ctx context.Context, t *testing.T, box *lab.Box, me *identity.Identity) {
	t.Helper()
	err := greets(ctx, box, me)
	refused := err != nil && strings.Contains(err.Error(), "remote error: tls")
	if own := box.Parent != "core"; refused == own {
		t.Errorf("%s: MQTT's TLS refuses an ended certificate: %v (%v); at its own relay it must not, elsewhere it must", box.Name, refused, err)
	}
	transport := &http.Transport{TLSClientConfig: identity.NewLive(me).ClientTLS(""), DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return box.Dial(ctx, addr) }}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: time.Minute}
	for _, path := range []string{"/v2/", stream.PathPrefix + stream.SessionID{}.String()} {
		resp, err := client.Get("https://" + net.JoinHostPort(box.Uplink.ParentAddr, "8443") + path)
		if err != nil {
			t.Logf("%s at %s: %v", box.Name, path, err) // refused by TLS
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: an ended certificate opens %s: %s", box.Name, path, resp.Status)
		}
	}
}

// greets shakes hands with the parent's MQTT port and waits for what it says first: an
// alert, or, ten seconds later, that it waited for a CONNECT in vain.
func greets(ctx context.Context, box *lab.Box, me *identity.Identity) error {
	raw, err := box.Dial(ctx, net.JoinHostPort(box.Uplink.ParentAddr, "8883"))
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	conn := tls.Client(raw, identity.NewLive(me).ClientTLS(""))
	if err := conn.Handshake(); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
