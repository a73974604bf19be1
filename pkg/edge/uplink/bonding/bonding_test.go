package bonding

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// said is what the kernel says of a bond, shortened by hand; TestBond of the package above reads the
// kernel's own.
const said = `Ethernet Channel Bonding Driver: v6.12

Bonding Mode: IEEE 802.3ad Dynamic link aggregation
MII Status: up

802.3ad info
LACP rate: fast
Active Aggregator Info:
	Aggregator ID: 1
	Number of ports: 2

Slave Interface: up0
MII Status: up
Aggregator ID: 1

Slave Interface: up1
MII Status: up
Aggregator ID: 1
`

func TestLook(t *testing.T) {
	for _, c := range []struct{ from, to, says string }{
		{"", "", ""},
		{"up1\nMII Status: up", "up1\nMII Status: down", "bond0: no connection at up1"},
		{"up1\nMII Status: up\nAggregator ID: 1", "up1\nMII Status: up\nAggregator ID: 2", "bond0: the other end does not take up1 into it"},
		{"up1\nMII Status: up\nAggregator ID: 1", "up1\nMII Status: down\nAggregator ID: 2", "bond0: no connection at up1"},
		{said[strings.Index(said, "Slave"):], "", "bond0 has no ports"},
	} {
		w := Watch{Root: fstest.MapFS{dir + "/bond0": {Data: []byte(strings.Replace(said, c.from, c.to, 1))}}, Now: func() time.Time { return time.Unix(7, 0) }}
		got := w.Warnings()
		if (c.says == "") != (len(got) == 0) || len(got) == 1 && (got[0].Message != c.says || got[0].Since != 7) {
			t.Errorf("%q: %+v", c.says, got)
		}
	}
	if words := Look(fstest.MapFS{}); words != nil {
		t.Errorf("%v", words)
	}
}
