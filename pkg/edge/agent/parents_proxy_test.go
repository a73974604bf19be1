package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// TestParentsDial: parents are reached as the box was told to dial.
func TestParentsDial(t *testing.T) {
	refused := errors.New("the proxy says no")
	var asked string
	p := NewParents(ParentsConfig{Live: identity.NewLive(newBench(t).id), Attach: func([]api.ParentRef) {}, Log: slog.New(slog.DiscardHandler),
		Count: func(c net.Conn) net.Conn { return c },
		Dial:  func(_ context.Context, _, address string) (net.Conn, error) { asked = address; return nil, refused }})
	if err := p.Leads(t.Context(), api.ParentRef{Address: "core.example:8883", HTTPSPort: 443}); !errors.Is(err, refused) || asked != "core.example:443" {
		t.Errorf("%q %v", asked, err)
	}
}
