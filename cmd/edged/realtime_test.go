package main

import (
	"strings"
	"testing"
	"time"
)

func TestContradiction(t *testing.T) {
	if list := contradiction(0); len(list) > 0 {
		t.Errorf("clocks that agree: %+v", list)
	}
	for by, want := range map[time.Duration]string{time.Hour: "1h0m0s later", -20 * time.Second: "20s earlier"} {
		if list := contradiction(by); len(list) != 1 || list[0].Name != "ptp-contradicts-core" || !strings.Contains(list[0].Message, want) {
			t.Errorf("%s: %+v", by, list)
		}
	}
}
