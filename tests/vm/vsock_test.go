package vm

import (
	"testing"

	"pgregory.net/rapid"
)

// TestPacket: what is encoded is read again, and what is torn is not read.
func TestPacket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := packet{from: rapid.Uint64().Draw(t, "from"), to: guestCID, fromPort: rapid.Uint32().Draw(t, "port"), kind: 1, op: opData, window: credit,
			taken: rapid.Uint32().Draw(t, "taken"), data: rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "data")}
		b := p.encode()
		got, ok := decodePacket(b)
		if !ok || got.from != p.from || got.fromPort != p.fromPort || got.op != p.op || got.taken != p.taken || string(got.data) != string(p.data) {
			t.Fatalf("%+v", got)
		}
		if _, ok := decodePacket(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); ok {
			t.Fatal("a torn packet is read")
		}
	})
}
