package hardware

import (
	"encoding/json"
	"testing"
)

func TestLookAtThisMachine(t *testing.T) {
	inv := Look(Host(t.TempDir()))
	b, err := json.MarshalIndent(inv, "", " ")
	t.Logf("%s %v", b, err)
}
