// Package ptp answers: does this box know the time as exactly as its profile asks?
//
// linuxptp keeps it: ptp4l speaks IEEE 1588 with the network, phc2sys carries the time of a
// card's clock to the system's. config.go writes their settings, ask.go asks ptp4l how it is,
// keep.go has both run, and says in warnings when the box is not locked or too far off.
package ptp

import (
	"fmt"
	"strings"
)

// Settings are what a profile asks for.
type Settings struct {
	// Domain is that of IEEE 1588; 24 to 43 in telecom (G.8275.1).
	Domain int
	// Transport is L2 or UDPv4.
	Transport string
	// Software takes times in the kernel, where cards have no clock: microseconds, not
	// nanoseconds.
	Software bool
	// Server has the box give the time where nobody better does; else it only takes it.
	Server bool
	// FreeRunning measures and sets no clock.
	FreeRunning bool
	// BoundNS is how far off the box may be, in nanoseconds; 0 is 1500 (G.8271, class 4).
	BoundNS int64
}

// stepBeyond is how far off, in seconds, a clock is set at once instead of being brought there by its rate. At that
// distance a radio unit's phase is lost already (decision 212); what is nearer is back within a minute.
const stepBeyond = "1.0"

// Bound is BoundNS or what stands for it.
func (s *Settings) Bound() int64 {
	if s.BoundNS > 0 {
		return s.BoundNS
	}
	return 1500
}

// follows tells that the box follows a clock. Who sets none never says that it has locked.
func (s *Settings) follows(r *Reading) bool {
	return r.State == "slave" || s.FreeRunning && r.State == "uncalibrated" && r.Present
}

// Config is the file that ptp4l reads (ptp4l(8)) for ports; dir is where its sockets are.
func (s *Settings) Config(dir string, ports []string) string {
	var b strings.Builder
	set := func(name string, value any) { fmt.Fprintf(&b, "%s %v\n", name, value) }
	yes := func(name string, on bool) {
		if on {
			set(name, 1)
		} else {
			set(name, 0)
		}
	}
	b.WriteString("[global]\n")
	set("domainNumber", s.Domain)
	transport := s.Transport
	if transport == "" {
		transport = "L2"
	}
	set("network_transport", transport)
	if s.Software {
		set("time_stamping", "software")
	} else {
		set("time_stamping", "hardware")
	}
	yes("slaveOnly", !s.Server)
	yes("free_running", s.FreeRunning)
	set("uds_address", dir+"/ptp4l")
	set("verbose", 0)
	set("use_syslog", 0)
	set("logging_level", 5)
	set("tx_timestamp_timeout", 50)
	// linuxptp 3.1 never locks again once a clock looked odd to it (a machine that stood still): it starts over at each
	// look, and finds that odd as well. What it watches for is that others set the clock; nobody does.
	set("sanity_freq_limit", 0)
	// By itself linuxptp steps a clock that is off at its start, and never again: one that somebody sets wrong later it
	// would run a tenth too fast or too slow, all timers with it, which takes ten days for a day.
	set("step_threshold", stepBeyond)
	if s.Domain >= 24 && s.Domain <= 43 { // G.8275.1, table A.5
		set("logAnnounceInterval", -3)
		set("logSyncInterval", -4)
		set("logMinDelayReqInterval", -4)
	}
	// Ports of several cards have clocks of their own; phc2sys brings the others to that of the port which follows.
	yes("boundary_clock_jbod", !s.Software && len(ports) > 1)
	for _, name := range ports {
		fmt.Fprintf(&b, "[%s]\n", name)
	}
	return b.String()
}
