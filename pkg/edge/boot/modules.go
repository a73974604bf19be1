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

// setModprobe names the program that the kernel runs for what it misses. There is none while
// ciphers are loaded: for each that one of them makes of others, twenty and more, it would be
// asked in vain.
func setModprobe(path string) {
	_ = os.WriteFile("/proc/sys/kernel/modprobe", []byte(path+"\n"), 0) // it is asked, then
}

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
	setModprobe("")                                // openState gives it back
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
	b.plugEarly(ctx)
	return nil
}

// early are drivers of what answering takes: of the port by which a machine's host asks, and
// of the TPM that keeps STATE's key. All others wait until the agent answers.
var early = []string{"virtio_console", "tpm_crb", "tpm_tis"}

// tpmTable is ACPI's word that there is a TPM.
const tpmTable = "/sys/firmware/acpi/tables/TPM2"

func (b *booter) plugEarly(ctx context.Context) {
	for _, name := range early {
		if tpm := strings.HasPrefix(name, "tpm"); !b.modules.Holds(name) || tpm && !exists(tpmTable) || !tpm && !exists("/sys/bus/virtio/devices") {
			continue
		}
		if err := b.modules.Load(name); err != nil && !errors.Is(err, unix.ENODEV) {
			b.say("%v", err)
		}
	}
	b.answerHost(ctx)
	if !exists("/sys/firmware/acpi") || exists(tpmTable) && !exists("/sys/class/tpm/tpm0") {
		b.plugged = true // a TPM may hang on any bus
		go b.plugAll(ctx)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// answerHost serves the host of a virtual machine, once its port is there.
func (b *booter) answerHost(ctx context.Context) {
	if b.hosted || hostport.Find("/sys", "/dev") == "" {
		return
	}
	b.hosted = true
	log := slog.New(slog.NewTextHandler(b.out, nil))
	go b.forever(ctx, "host port", func(ctx context.Context) error { return hostport.Serve(ctx, agentSocket, log) })
}

// plugRest gives all devices their drivers, beside the rest of boot.
func (b *booter) plugRest(ctx context.Context) error {
	if b.modules == nil || b.plugged {
		b.answerHost(ctx)
		return nil
	}
	go func() {
		b.plugAll(ctx)
		b.answerHost(ctx)
	}()
	return nil
}

func (b *booter) plugAll(ctx context.Context) {
	news, err := kmod.Listen()
	if err != nil {
		b.say("drivers: %v", err)
	}
	if err := guarded(ctx, b.plug); err != nil {
		b.say("drivers: %v", err)
	}
	b.setPorts("/sys")
	if news == nil {
		return
	}
	go b.forever(ctx, "drivers", func(ctx context.Context) error { return b.hotPlug(ctx, news) })
}

// hotPlug gives devices that come later their drivers: what hangs on USB takes its time to show itself, and people
// plug things in.
func (b *booter) hotPlug(ctx context.Context, news *kmod.News) error {
	return b.modules.HotPlug(ctx, news, "/sys", deny, func(loaded int, err error) {
		if err != nil {
			b.say("drivers: %v", err)
		}
		if loaded > 0 {
			b.say("%d more drivers", loaded)
		}
	})
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
