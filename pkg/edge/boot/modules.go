package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/edge/boot/hostport"
	"tributary.dev/tributary/pkg/edge/boot/kmod"
)

// needed are what the disks' volumes take: no device asks for them. Ciphers are loaded by
// what they answer to, so that the processor's own instructions are there before dm-crypt
// chooses; later would be too late.
var needed = []string{"dm-crypt", "crypto-aes", "crypto-xts", "ext4"}

// later are for apps and their networks. They are loaded beside the rest of boot; who needs
// one earlier gets it by the kernel's own request (modprobe).
var later = []string{"overlay", "bridge", "veth", "br_netfilter", "nf_tables"}

// deny keeps out what a box of containers has no use for, and what takes long to load.
func deny(name string) bool { return strings.HasPrefix(name, "kvm") }

// loadModules loads what the next steps need, and starts the rest.
func (b *booter) loadModules(ctx context.Context) (err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	dir := "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
	tree, err := kmod.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		b.say("no modules in %s: all is built in", dir)
		return nil
	} else if err != nil {
		return err
	}
	if b.out.verbose {
		tree.Took = func(name string, took time.Duration) { b.say("module %-20s %6.0f ms", name, took.Seconds()*1000) }
	}
	b.modules = tree
	systems, _ := os.ReadFile("/proc/filesystems") // none: all are loaded
	for _, alias := range needed {
		if strings.Contains(string(systems), "\t"+alias+"\n") {
			continue // built in
		}
		if err := tree.LoadAlias(alias); err != nil {
			b.say("%v", err) // built in under another name, most likely; the volume's step tells
		}
	}
	if b.dog == nil {
		b.retryWatchdog()
	}
	go func() {
		if err := guarded(ctx, b.plug); err != nil {
			b.say("drivers: %v", err)
		}
		b.setPorts("/sys")
		if hostport.Find("/sys", "/dev") != "" {
			log := slog.New(slog.NewTextHandler(b.out, nil))
			b.forever(ctx, "host port", func(ctx context.Context) error { return hostport.Serve(ctx, agentSocket, log) })
		}
	}()
	return nil
}

// plug gives each device its driver.
func (b *booter) plug(context.Context) error {
	at := time.Now()
	count, err := b.modules.ColdPlug("/sys", deny)
	errs := []error{err}
	// A bus driver brings new devices to light (USB behind its host).
	if count > 0 {
		n, err := b.modules.ColdPlug("/sys", deny)
		errs, count = append(errs, err), count+n
	}
	errs = append(errs, b.modules.Load(later...))
	b.say("%d drivers in %v", count, time.Since(at).Round(time.Millisecond))
	return errors.Join(errs...)
}
