package link

import (
	"errors"
	"log/slog"
	"testing"
	"time"
)

// What is taken in while the store does not answer is bounded, and nothing else is.
func TestHeldIsBounded(t *testing.T) {
	c := &CoreEndpoint{cfg: CoreEndpointConfig{Now: time.Now}}
	c.cfg.Log = slog.New(slog.DiscardHandler)
	if !c.room(maxHeld + 1) {
		t.Error("a frame is refused though the store answers")
	}
	c.silent(errors.New("away"))
	for range 2 {
		if !c.room(maxHeld / 2) {
			t.Error("a frame is refused though there is room")
		}
	}
	if c.room(1) {
		t.Error("more is held than the bound")
	}
	c.answered()
	if !c.room(1) {
		t.Error("a frame is refused though the store answers again")
	}
}
