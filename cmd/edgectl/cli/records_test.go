package cli

import (
	"testing"

	"tributary.dev/tributary/pkg/api"
)

func TestRecordRow(t *testing.T) {
	kpi := recordEntry{Seq: 7, Epoch: 1, Kind: "telemetry", KPI: &api.KPI{Name: "ptp.offset", Unit: "ns", Count: 880, Missing: 20, Min: -40, Max: 55, Mean: 2, RMS: 17}}
	if got := recordRow(kpi)[4]; got != "ptp.offset -40 to 55 ns, mean 2, rms 17, of 880 readings, 20 missing" {
		t.Error(got)
	}
	if got := recordRow(recordEntry{Seq: 1, Kind: "telemetry", Data: []byte("free")})[4]; got != "4 bytes" {
		t.Error(got)
	}
}
