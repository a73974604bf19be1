package web

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

func TestThePageOfADevice(t *testing.T) {
	wear := 3
	c, err := New(Config{Who: func(r *http.Request) (context.Context, string, error) { return r.Context(), "kim", nil }, Log: slog.New(slog.DiscardHandler),
		Inventory: func(_ context.Context, tenant, name string) (*api.Inventory, error) {
			if tenant != "default" || name != "shed-7" {
				return nil, &api.Error{Code: api.NotFound, Message: "none"}
			}
			return &api.Inventory{Claims: []api.DeviceUse{{Claimable: api.Claimable{Class: api.ClaimHugePages, ID: "2M@0", Units: 512, Facts: map[string]string{"size": "2M"}},
				Holders: []api.DeviceHolder{{App: "ran", Service: "du", Units: 100}}}}, Accelerators: []api.Accelerator{{ID: "GPU-1", Sharing: api.Sharing{Mode: api.SharingMIG}, MIG: &api.MIG{Instances: []api.MIGInstance{
				{Name: "1g.5gb", Placement: api.MIGPlacement{Start: 4, Size: 1}, Cordoned: "memory failed (XID 48)"}}}}}, CPU: &api.CPU{Model: "Example <b>", Cores: 4}, Disks: []api.Disk{{Name: "nvme0n1", Bytes: 1e12, Wear: &wear}},
				Cards:      []api.CardHealth{{Card: "pci/0000:01:00.0", ResetFailed: true, Reporters: []api.HealthReporter{{Name: "fw", Failed: true, Errors: 231, Recoveries: 17}, {Name: "tx", Interface: "eth0"}}}},
				NetDevices: []api.NetDevice{{Name: "eth0", PCI: "0000:01:00.0", Link: api.Link{State: "up", Speed: 10000}}},
				PCI:        []api.PCIFunction{{Address: "0000:00:01.0"}, {Address: "0000:01:00.0", Bridge: "0000:00:01.0", Driver: "igb", MaxVirtualFunctions: 7}}}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	code, page := get("/console/devices/default/shed-7")
	for _, want := range []string{"Example &lt;b&gt;", "nvme0n1", "3 %", "up, 10000 Mbit/s", "0 of 7 virtual functions", "hugepages-2M", "100 of 512", "412", "ran/du", "GPU-1/4&#43;1", "cordoned: memory failed (XID 48)",
		"failed to begin anew", "<td>fw</td><td>failed</td><td>231</td><td>17</td>", "<td>tx of eth0</td><td>well</td>"} {
		if code != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("%d, without %q: %s", code, want, page)
		}
	}
	if code, _ := get("/console/devices/default/other"); code != http.StatusNotFound {
		t.Errorf("a device that is not there: %d", code)
	}
}

// Whatever functions say is above them, each is drawn once.
func TestBusTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.SampledFrom([]string{"a", "b", "c", "d", "", "gone"})
		i := &api.Inventory{}
		for _, name := range []string{"a", "b", "c", "d"} {
			i.PCI = append(i.PCI, api.PCIFunction{Address: name, Bridge: address.Draw(t, "bridge"), Physical: address.Draw(t, "physical")})
		}
		seen := map[string]int{}
		var walk func([]*function)
		walk = func(list []*function) {
			for _, f := range list {
				seen[f.Address]++
				walk(f.Children)
			}
		}
		walk(busTree(i))
		for _, f := range i.PCI {
			if seen[f.Address] != 1 {
				t.Fatalf("%s is drawn %d times", f.Address, seen[f.Address])
			}
		}
	})
}
