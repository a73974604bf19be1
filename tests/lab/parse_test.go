package lab

import "testing"

func TestParseLinkBytes(t *testing.T) {
	// iproute2 6.1, ip -s -o link show dev up0
	const out = `2: up0@if3: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP mode DEFAULT group default qlen 1000\    link/ether 72:ab:5c:1f:00:11 brd ff:ff:ff:ff:ff:ff link-netns core\    RX:  bytes packets errors dropped  missed   mcast           \        123456     12      0       0       0       0 \    TX:  bytes packets errors dropped carrier collsns           \          7890     12      0       0       0       0 `
	rx, tx, err := parseLinkBytes(out)
	if err != nil || rx != 123456 || tx != 7890 {
		t.Fatalf("got %d %d %v", rx, tx, err)
	}
	if _, _, err := parseLinkBytes("nothing"); err == nil {
		t.Fatal("no error for output without counters")
	}
}

func TestParseRollup(t *testing.T) {
	m := parseRollup("00400000-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:  8000 kB\nPss_Dirty: 1 kB\nAnonymous:  5000 kB\n")
	if m.PSS != 8000<<10 || m.Anonymous != 5000<<10 {
		t.Fatalf("got %+v", m)
	}
}
