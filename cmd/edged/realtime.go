package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/ptp"
	"tributary.dev/tributary/pkg/edge/realtime"
)

// realTime is what keeps the box fit for real-time work: processors left alone, and the time.
type realTime struct {
	*realtime.Keeper
	ptp *ptp.Keeper // where the profile asks for it
}

// openRealtime reads what the profile of the image keeps for real-time work. Where no image
// of ours runs it asks for nothing, and what the kernel isolates is respected all the same.
func (b *box) openRealtime(context.Context) (err error) {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		p = hwprofiles.Profile{}
	}
	if b.realtime.Keeper, err = realtime.New(realtime.Host(), b.state, wishOf(p), b.clock.Now, b.log); err != nil {
		return err
	}
	if p.PTP != nil {
		b.realtime.ptp = ptp.New(ptp.Config{Settings: ptp.Settings{Interfaces: p.PTP.Interfaces, Domain: p.PTP.Domain, Transport: p.PTP.Transport,
			Software: p.PTP.Timestamping == "software", Server: p.PTP.Server, BoundNS: p.PTP.BoundNS},
			Dir: filepath.Join(b.o.run, "ptp"), PTP4L: "/usr/sbin/ptp4l", PHC2SYS: "/usr/sbin/phc2sys", Now: b.clock.Now, Log: b.log, Output: b.errs})
	}
	return nil
}

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
	return out
}

func (r *realTime) metrics(w io.Writer) {
	if r.ptp != nil {
		r.ptp.Metrics(w)
	}
}
