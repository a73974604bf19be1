package main

import (
	"slices"
	"testing"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/edge/boot"
)

func TestAgentArgs(t *testing.T) {
	if argv, why := agentArgs(boot.Facts{Data: "/data/edged"}); slices.Contains(argv, "--parent") || !slices.Contains(argv, "--find-owner") {
		t.Errorf("without a parent: %v, %q", argv, why)
	}
	argv, _ := agentArgs(boot.Facts{Data: "/data/edged", Parent: "https://core.example:8443", TokenFile: "/run/t", Settings: boot.Settings{Name: "box", Relay: true, Labels: map[string]string{"rack": "3", "hall": "b"}},
		Profile: hwprofiles.Profile{Relay: hwprofiles.Relay{Cache: 512}}})
	want := []string{"/usr/bin/edged", "run", "--data", "/data/edged", "--run", "/run/edged", "--find-owner", "--parent", "core.example:8883,8443", "--join-token-file", "/run/t", "--name", "box", "--labels", "hall=b,rack=3", "--proxy-file", "/run/tributary/proxy", "--uplinks", "/run/tributary/uplinks.json", "--relay", "--cache", "512"}
	if !slices.Equal(argv, want) {
		t.Errorf("%q", argv)
	}
}
