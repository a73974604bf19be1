package flow

import (
	"net/netip"

	"tributary.dev/tributary/pkg/api"
)

// This file keeps rules in their order where a card has some and not others. A card acts before
// the kernel sees a packet, whatever the preferences: a rule in the card would be met before an
// earlier one in software. So a rule asks the card only while all earlier ones that could match
// the same packets are there.

// asks tells that a rule is to be in the card, if the card takes it.
func (r *Rule) asks() bool { return r.Capable && !r.Soft && r.Offload != api.OffloadOff }

// Ordered says which rules stay in software behind others: those of the kernel tell which are
// in the card. What is not known yet is taken to be willing; settle finds out.
func Ordered(want []Rule, have []Filter) []Rule {
	type id struct {
		hook Hook
		id   string
	}
	card := map[id]bool{}
	for _, f := range have {
		at := id{f.Hook, f.ID}
		before, known := card[at]
		card[at] = f.InHardware && (before || !known)
	}
	out := make([]Rule, len(want))
	soft := map[Hook][]*Rule{}
	for i := range want {
		out[i] = want[i]
		r := &out[i]
		r.Soft, r.Behind = false, ""
		in, known := card[id{r.Hook, r.ID()}]
		if r.asks() {
			for _, s := range soft[r.Hook] {
				if overlap(&s.Key, &r.Key) {
					r.Soft, r.Behind = true, s.Policy+"/"+s.Name
					break
				}
			}
		}
		if !r.asks() || known && !in {
			soft[r.Hook] = append(soft[r.Hook], r)
		}
	}
	return out
}

// settler is what settle works with: the kernel, or a model of it in tests.
type settler struct {
	// look tells what stands, mark changes what it told before a plan is made of it.
	look func() ([]Filter, error)
	mark func(have []Filter, rules []Rule)
	// step does one step of a plan; inCard tells whether a rule that was added is in the card.
	step   func(Step)
	inCard func(*Rule, uint16) bool
}

// settle brings the kernel to what is wanted, and gives the rules as they were ordered in the
// end. Where a rule turns out to be in software, and later ones that ask the card could match
// the same, these are ordered anew before anything else is done.
func settle(want []Rule, s settler) ([]Rule, error) {
	for range len(want) + 1 { // each round finds one more that the card does not take
		have, err := s.look()
		if err != nil {
			return want, err
		}
		want = Ordered(want, have)
		s.mark(have, want)
		steps, err := Plan(have, want)
		if s.carry(steps, want) || err != nil {
			return want, err
		}
	}
	return want, nil
}

// carry does the steps until a rule turns out to be in software that a later one must not
// overtake. true says that all were done.
func (s settler) carry(steps []Step, rules []Rule) bool {
	for _, one := range steps {
		s.step(one)
		if one.Add != nil && one.Add.asks() && overtaken(one.Add, rules) && !s.inCard(one.Add, one.Pref) {
			return false
		}
	}
	return true
}

// overtaken tells that a later rule asks the card which could match the same packets.
func overtaken(r *Rule, rules []Rule) bool {
	later := false
	for i := range rules {
		o := &rules[i]
		if later && o.Hook == r.Hook && o.asks() && overlap(&r.Key, &o.Key) {
			return true
		}
		later = later || o.Hook == r.Hook && o.Policy == r.Policy && o.Name == r.Name && o.Key == r.Key
	}
	return false
}

// overlap tells whether a packet could match both: true where it is not known to be impossible.
func overlap(a, b *Key) bool {
	return agree(a.EthType, b.EthType) && agree(a.VLAN, b.VLAN) && same(a.VLANPriority, b.VLANPriority) && same(a.Proto, b.Proto) && same(a.DSCP, b.DSCP) &&
		same(a.SrcMAC, b.SrcMAC) && same(a.DstMAC, b.DstMAC) && same(a.TunnelID, b.TunnelID) && agree(a.TunnelSrc, b.TunnelSrc) && agree(a.TunnelDst, b.TunnelDst) &&
		meet(a.Src, b.Src) && meet(a.Dst, b.Dst) && cross(a.SrcPorts, b.SrcPorts) && cross(a.DstPorts, b.DstPorts)
}

// agree: one of the two says nothing, or both say the same.
func agree[T comparable](a, b T) bool {
	var nothing T
	return a == b || a == nothing || b == nothing
}

func same[T comparable](a, b *T) bool { return a == nil || b == nil || *a == *b }

func meet(a, b netip.Prefix) bool { return !a.IsValid() || !b.IsValid() || a.Overlaps(b) }

func cross(a, b [2]uint16) bool {
	return a == [2]uint16{} || b == [2]uint16{} || a[0] <= b[1] && b[0] <= a[1]
}
