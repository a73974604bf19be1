package flow

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"

	"tributary.dev/tributary/pkg/api"
)

var verbs = map[Verb]string{Unwrap: "unwrap", Police: "police", Mirror: "mirror", Pop: "pop", Header: "header", Address: "address", Answer: "answer", AnswerPort: "answerport",
	Sum: "sum", Push: "push", Wrap: "wrap", Redirect: "redirect", Drop: "drop", Pass: "pass"}

func describe(r Rule) string {
	out := []string{fmt.Sprint(r.Hook.Link), fmt.Sprintf("%x", r.Key.protocol())}
	for _, a := range r.Actions {
		word := verbs[a.Do]
		if a.Do == Mirror || a.Do == Redirect {
			word = fmt.Sprintf("%s:%d", word, a.Link)
		}
		out = append(out, word)
	}
	return strings.Join(out, " ")
}

// message is a filter as the kernel tells of it, made from what the kernel would be told.
func message(t testing.TB, r *Rule) []byte {
	o, err := r.options(flagInHW)
	if err != nil {
		t.Fatal(err)
	}
	b := (&nl.TcMsg{Ifindex: int32(r.Hook.Link), Handle: 1, Parent: parent(r.Hook), Info: 77<<16 | uint32(nl.Swap16(r.Key.protocol()))}).Serialize()
	b = append(b, nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("flower")).Serialize()...)
	return append(b, o.Serialize()...)
}

func TestReadBack(t *testing.T) {
	r := compileOne(api.FlowRule{Match: api.FlowMatch{Protocol: "tcp", DestinationPort: "80-90"}, Drop: true}).Rules[1]
	f, ok := readFilter(message(t, &r))
	if !ok || f.ID != r.ID() || f.Pref != 77 || f.Hook != r.Hook || !f.InHardware || f.EthType != ethIPv6 {
		t.Errorf("%+v %v, of %x", f, ok, r.ID())
	}
}

// What the kernel sends is read without harm, whatever it is.
func FuzzReadFilter(f *testing.F) {
	for _, r := range compileOne(api.FlowRule{Match: api.FlowMatch{Protocol: "tcp"}, PushVLAN: &api.FlowVLAN{ID: 8}}).Rules {
		f.Add(message(f, &r))
	}
	f.Add([]byte{})
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if filter, ok := readFilter(b); ok && len(filter.ID) != 0 && len(filter.ID) != 12 {
			t.Errorf("%+v", filter)
		}
		_, _ = readLink(b)
	})
}
