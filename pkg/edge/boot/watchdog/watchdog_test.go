package watchdog

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestDeserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(-1, 100).Draw(t, "resets")
		if h := Hold(n); h < 10*time.Minute || h > 24*time.Hour || h < Hold(n-1) {
			t.Fatalf("hold of %v after %d resets", h, n)
		}
		ago := time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "ago"))
		if Deserved(ago, n) && ago > 24*time.Hour {
			t.Fatal("a box that is ill for a day is never reset")
		}
		if !Deserved(ago, n) && ago < 10*time.Minute {
			t.Fatal("a short illness resets the box")
		}
	})
}
