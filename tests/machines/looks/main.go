//go:build linux

// Command looks answers: what does a guest's inventory say while its hardware changes?
//
// It runs in a guest of the test's, keeps the inventory as edged does, and says each part
// that came (+), changed (~) or went (-), and how long after the kernel's word. It obeys
// lines on the console: `vfs ADDRESS N [bare]` (without drivers), `up INTERFACE`, `show`, `record`, `off`.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/hardware"
	"tributary.dev/tributary/pkg/edge/hardware/hwtest"
	"tributary.dev/tributary/pkg/report"
)

func main() {
	source := hardware.Host("/")
	var heard atomic.Pointer[time.Time] // the kernel's first word since the last change
	keeper := hardware.NewKeeper(func() api.Inventory { return hardware.Look(source) }, func(ctx context.Context, poke func()) error {
		return hardware.Hear(ctx, func() {
			now := time.Now()
			heard.CompareAndSwap(nil, &now)
			poke()
		})
	}, slog.Default())
	go func() { _ = keeper.Run(context.Background()) }() // as long as the guest
	go tell(keeper, &heard)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if words[0] == "off" {
			return
		}
		if err := obey(words, keeper, source); err != nil {
			fmt.Println("looks: error:", err)
		}
	}
}

// tell says what changed.
func tell(keeper *hardware.Keeper, heard *atomic.Pointer[time.Time]) {
	before := map[string][]byte{}
	for range keeper.Changed() {
		since := "at the first look"
		if at := heard.Swap(nil); at != nil {
			since = fmt.Sprintf("%d ms after the kernel's word", time.Since(*at).Milliseconds())
		}
		now, err := report.SplitInventory(keeper.Inventory())
		if err != nil {
			fmt.Println("looks: error:", err)
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(now)) {
			switch old, known := before[key]; {
			case !known:
				fmt.Printf("looks: + %s %d B, %s.\n", key, len(now[key]), since)
			case !bytes.Equal(old, now[key]):
				fmt.Printf("looks: ~ %s %d B, %s.\n", key, len(now[key]), since)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(before)) {
			if now[key] == nil {
				fmt.Printf("looks: - %s, %s.\n", key, since)
			}
		}
		before = now
		fmt.Println("looks: told")
	}
}

func obey(words []string, keeper *hardware.Keeper, source hardware.Source) error {
	switch {
	case words[0] == "vfs" && len(words) >= 3:
		at := "/sys/bus/pci/devices/" + words[1] + "/"
		if len(words) > 3 {
			if err := os.WriteFile(at+"sriov_drivers_autoprobe", []byte("0"), 0); err != nil {
				return err
			}
		}
		return os.WriteFile(at+"sriov_numvfs", []byte(words[2]), 0)
	case words[0] == "up" && len(words) == 2:
		link, err := netlink.LinkByName(words[1])
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	case words[0] == "show":
		return say("inventory", keeper.Inventory())
	case words[0] == "record":
		return say("recording", hwtest.Record(source))
	}
	return fmt.Errorf("no such command: %q", words)
}

// say prints a value as JSON, compressed: a serial line is slow.
func say(what string, value any) error {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(value); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	fmt.Printf("looks: %s %s.\n", what, base64.StdEncoding.EncodeToString(b.Bytes()))
	return nil
}
