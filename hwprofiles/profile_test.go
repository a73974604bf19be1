package hwprofiles

import "testing"

func TestEveryProfileLoads(t *testing.T) {
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		t.Logf("%s: %d MiB, %v", p.Name, p.Partitions.Total(), p.Cmdline())
	}
}
