package hwprofiles

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFlowModules: the images of boxes that carry others' traffic have what flow policies and
// bonds take of the kernel; the virtual machines' kernel has no GTP.
func TestFlowModules(t *testing.T) {
	sched := []string{"act_csum", "act_tunnel_key", "act_mirred", "act_police", "cls_flower", "sch_ingress"} // of net/sched/
	for _, p := range all(t) {
		var lines []string
		for _, class := range p.Modules {
			b, err := os.ReadFile(filepath.Join("../rootfs/modules", class+".list"))
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, strings.Split(string(b), "\n")...)
		}
		for _, m := range append(sched, "vxlan", "ip_gre", "gtp", "bonding", "8021q") {
			named := m
			if slices.Contains(sched, m) {
				named = "net/sched/"
			}
			if !slices.Contains(lines, named) || slices.Contains(lines, "!"+m) {
				t.Errorf("images of %s have no %s", p.Name, m)
			}
		}
	}
}
