package voucher

import (
	"strings"
	"testing"
)

func TestReleaseImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0f", 32)
	b, err := ReleaseImage("[fd00::1]:8443", "2.0", "default/os@"+digest)
	if err != nil || b.URIs[0] != "https://[fd00::1]:8443/v2/default/os/manifests/"+digest || b.Verification[0].Value != strings.TrimSuffix(strings.Repeat("0f:", 32), ":") {
		t.Fatalf("%+v, %v", b, err)
	}
	if repo, got, err := b.Release(); err != nil || repo != "default/os" || got != digest {
		t.Errorf("%s %s %v", repo, got, err)
	}
	for name, change := range map[string]func(*BootImage){
		"another system":     func(b *BootImage) { b.Name = "other-os" },
		"without a hash":     func(b *BootImage) { b.Verification = nil },
		"of another hash":    func(b *BootImage) { b.Verification = []Hash{{sha256Name, strings.Repeat("00:", 31) + "00"}} },
		"a hash that is cut": func(b *BootImage) { b.Verification = []Hash{{sha256Name, "0f:0f"}} },
		"from nowhere":       func(b *BootImage) { b.URIs = nil },
		"from no registry":   func(b *BootImage) { b.URIs = []string{"https://h/file"} },
		"in the clear":       func(b *BootImage) { b.URIs = []string{"http://h/v2/default/os/manifests/" + digest} },
		"of no repository":   func(b *BootImage) { b.URIs = []string{"https://h/v2/manifests/" + digest} },
	} {
		c, err := ReleaseImage("h", "2.0", "default/os@"+digest)
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		if repo, got, err := c.Release(); err == nil {
			t.Errorf("%s: %s %s", name, repo, got)
		}
	}
	for _, bad := range []string{"default/os", "default/os@sha256:00", "default/os:latest"} {
		if _, err := ReleaseImage("h", "1", bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
