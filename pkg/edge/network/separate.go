package network

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table of this package; it is rewritten as a whole.
const tableName = "tributary"

// separate keeps apps apart: what comes from one of our bridges and would leave by
// another of them is dropped, unless it goes to a published port.
//
// The rules, in nft's words:
//
//	table ip tributary { chain forward { type filter hook forward priority filter;
//	    ct status dnat accept
//	    ct state established,related accept
//	    iifname "trb…" oifname "trb…" accept        (one for each bridge, to itself)
//	    iifname "trb*" oifname "trb*" drop
//	} }
func (m *Manager) separate() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var bridges []string
	for key := range m.book.Subnets {
		for i := range key {
			if key[i] == '/' {
				bridges = append(bridges, BridgeName(key[:i], key[i+1:]))
				break
			}
		}
	}
	slices.Sort(bridges)
	if fmt.Sprint(bridges) == m.separated {
		return
	}
	if err := writeRules(bridges); err != nil {
		m.cfg.Log.Warn("apps cannot be kept apart by the firewall", "err", err)
		return
	}
	m.separated = fmt.Sprint(bridges)
}

func writeRules(bridges []string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.FlushChain(chain)
	add := func(e ...expr.Any) { c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: e}) }
	accept, drop := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictDrop}

	const statusDNAT = 1 << 5 // IPS_DST_NAT, nf_conntrack_common.h
	add(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, mask(statusDNAT), notZero(), accept)
	add(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, mask(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), notZero(), accept)
	for _, b := range bridges {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, b)
		add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal(name), &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal(name), accept)
	}
	prefix := []byte(bridgePrefix)
	add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equal(prefix), &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, equal(prefix), drop)
	return c.Flush()
}

func mask(bits uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{byte(bits), byte(bits >> 8), byte(bits >> 16), byte(bits >> 24)}, Xor: []byte{0, 0, 0, 0}}
}

func notZero() expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}} }

func equal(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }
