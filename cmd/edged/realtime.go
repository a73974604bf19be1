package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/ptp"
	"tributary.dev/tributary/pkg/edge/realtime"
	"tributary.dev/tributary/pkg/edge/state"
	"tributary.dev/tributary/pkg/link/record"
)

// realTime is what keeps the box fit for real-time work: processors left alone, and the time.
type realTime struct {
	*realtime.Keeper
	ptp   *ptp.Keeper // where the profile asks for it
	clock *state.Clock
}

// openRealtime reads what the profile of the image keeps for real-time work. Where no image
// of ours runs it asks for nothing, and what the kernel isolates is respected all the same.
func (b *box) openRealtime(context.Context) (err error) {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		p = hwprofiles.Profile{}
	}
	b.realtime.clock = b.clock
	b.realtime.Keeper, err = realtime.New(realtime.Host(), b.state, wishOf(p), b.clock.Now, b.log)
	return err
}

// openPTP makes the keeper of PTP, where the profile of the image asks for it; nothing runs yet.
func (b *box) openPTP() {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil || p.PTP == nil {
		return
	}
	b.realtime.ptp = ptp.New(ptp.Config{
		Settings: ptp.Settings{Domain: p.PTP.Domain, Transport: p.PTP.Transport, Software: p.PTP.Timestamping == "software", Server: p.PTP.Server, BoundNS: p.PTP.BoundNS},
		Ports: func() []string {
			inv := b.keeper.Inventory()
			if inv == nil {
				return nil
			}
			return p.PTPPorts(inv.NetDevices)
		},
		Up: func(name string) error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(link)
		},
		KPI: b.recordKPI,
		Dir: filepath.Join(b.o.run, "ptp"), PTP4L: "/usr/sbin/ptp4l", PHC2SYS: "/usr/sbin/phc2sys", Now: b.clock.Now, Log: b.log, Output: b.errs})
}

// contradiction is the warning that PTP and the core are not of one mind about the time.
func contradiction(by time.Duration) []api.Warning {
	if by == 0 {
		return nil
	}
	return []api.Warning{{Name: "ptp-contradicts-core", Severity: api.Degraded, Message: fmt.Sprintf("by PTP it is %s %s than by the core; edged goes by the core, apps by PTP", by.Abs().Round(time.Second), map[bool]string{true: "later", false: "earlier"}[by > 0]),
		Remedy: "look at the grandmaster's own time source, and at the core's clock"}}
}

// recordKPI tells the core of a quarter of an hour.
func (b *box) recordKPI(k api.KPI) {
	payload, err := record.EncodeKPI(k)
	if err == nil {
		_, err = b.link.Append(api.RecordTelemetry, payload)
	}
	if err != nil {
		b.log.Warn("a KPI is not recorded", "name", k.Name, "err", err)
	}
}

// holdsClock tells that the machine's clock is PTP's to set: neither time servers nor the core's word move it then
// (decision 212).
func (r *realTime) holdsClock() bool { return r.ptp != nil && r.ptp.Holds() }

func wishOf(p hwprofiles.Profile) realtime.Wish {
	w := realtime.Wish{Isolate: p.CPU.Isolate, RealTime: p.Kernel.Flavour == "rt"}
	for _, h := range p.CPU.HugePages {
		if pages, ok := realtime.PagesOf(h.Size, h.Count, h.Node); ok {
			w.Pages = append(w.Pages, pages)
		}
	}
	return w
}

func (b *box) keepRealtime(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if b.realtime.ptp != nil {
		wg.Go(func() {
			if err := b.realtime.ptp.Run(ctx); err != nil {
				b.log.Error("the time is not kept by PTP", "err", err)
			}
		})
	}
	return b.realtime.Run(ctx, nil)
}

// Warnings are those of processors, pages and the time.
func (r *realTime) Warnings() []api.Warning {
	out := r.Keeper.Warnings()
	if r.ptp != nil {
		out = append(out, r.ptp.Warnings()...)
	}
	if r.holdsClock() {
		out = append(out, contradiction(r.clock.Contradicts())...)
	}
	return out
}

func (r *realTime) metrics(w io.Writer) {
	if r.ptp != nil {
		r.ptp.Metrics(w)
	}
}
