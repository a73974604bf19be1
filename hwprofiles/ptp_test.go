package hwprofiles

import (
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
)

// A role stands for the ports of its drivers that have a clock; virtual functions and representors have none.
func TestPTPPorts(t *testing.T) {
	p := Profile{PTP: &PTP{Role: Fronthaul}, NICs: []NIC{{Drivers: []string{"ice"}, Role: Fronthaul}, {Role: Uplink}}}
	have := []api.NetDevice{
		{Name: "fh1", Driver: "ice", PTP: "ptp1"}, {Name: "fh0", Driver: "ice", PTP: "ptp0"}, {Name: "fh2", Driver: "ice"}, {Name: "up0", Driver: "igb", PTP: "ptp2"},
		{Name: "vf0", Driver: "ice", PTP: "ptp0", Physical: "0000:03:00.0"}, {Name: "rep0", Driver: "ice", PTP: "ptp0", SwitchPort: "pf0vf1"},
	}
	for _, c := range []struct {
		ptp  *PTP
		want string
	}{
		{nil, ""}, {&PTP{Interfaces: []string{"eth7"}}, "eth7"}, {&PTP{Role: Fronthaul}, "fh0 fh1"}, {&PTP{Role: Fronthaul, Timestamping: "software"}, "fh0 fh1 fh2"},
		{&PTP{Role: Uplink}, "up0"}, {&PTP{Role: Site}, ""},
	} {
		p.PTP = c.ptp
		if got := strings.Join(p.PTPPorts(have), " "); got != c.want {
			t.Errorf("%+v: %q, not %q", c.ptp, got, c.want)
		}
	}
}

func TestPTPIsRefused(t *testing.T) {
	for text, p := range map[string]*PTP{
		"ptp.interfaces": {}, "ports are picked by their role already": {Role: Fronthaul, Interfaces: []string{"eth0"}}, "ptp.role": {Role: "backhaul"},
		"these are no names": {Interfaces: []string{"eth0]"}}, "ptp.domain": {Role: Any, Domain: 128},
	} {
		c := &checker{}
		c.ptp(p)
		if err := api.JoinErrors(c.list, "the profile"); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%+v: %v, without %q", p, err, text)
		}
	}
	c := &checker{}
	if c.ptp(&PTP{Role: Fronthaul}); len(c.list) > 0 {
		t.Error(c.list)
	}
}
