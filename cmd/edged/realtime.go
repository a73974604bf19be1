package main

import (
	"context"
	"os"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/pkg/edge/realtime"
)

// openRealtime reads what the profile of the image keeps for real-time work. Where no image
// of ours runs it asks for nothing, and what the kernel isolates is respected all the same.
func (b *box) openRealtime(context.Context) (err error) {
	b.realtime, err = realtime.New(realtime.Host(), b.state, wishOf(), b.clock.Now, b.log)
	return err
}

func wishOf() realtime.Wish {
	p, err := hwprofiles.Installed(os.DirFS("/"))
	if err != nil {
		return realtime.Wish{}
	}
	w := realtime.Wish{Isolate: p.CPU.Isolate, RealTime: p.Kernel.Flavour == "rt"}
	for _, h := range p.CPU.HugePages {
		if pages, ok := realtime.PagesOf(h.Size, h.Count, h.Node); ok {
			w.Pages = append(w.Pages, pages)
		}
	}
	return w
}

func (b *box) keepRealtime(ctx context.Context) error { return b.realtime.Run(ctx, nil) }
