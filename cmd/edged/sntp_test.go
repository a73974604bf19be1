package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTimeServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uplinks.json")
	if got := timeServers(file); got != nil {
		t.Errorf("without a network: %q", got)
	}
	for text, want := range map[string][]string{
		`[{"name":"a","ntp":["10.0.0.1"]},{"name":"b"},{"name":"c","ntp":["10.0.0.2","10.0.0.3"]}]`: {"10.0.0.1", "10.0.0.2", "10.0.0.3"},
		`[{"name":`: nil,
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := timeServers(file); !slices.Equal(got, want) {
			t.Errorf("%s: %q", text, got)
		}
	}
}
