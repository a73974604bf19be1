package machines

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tributary.dev/tributary/tests/vm"
)

// TestRecoveryConsole drives the console of a flashed machine by script over its serial
// line: plain, drawn, and a factory reset, after which the box makes itself anew; and on its
// screen by its keyboard. What was on both is kept for people to look at (keepCapture).
func TestRecoveryConsole(t *testing.T) {
	spec := flashed(t, "amd64", "name: box\nnetwork: {uplinks: [{addresses: [10.77.0.1/24]}]}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	wires := vm.NewSwitch()
	t.Cleanup(wires.Close)
	spec.NICs, spec.Life = []vm.NIC{{Switch: wires}}, 3*patience
	spec.Extra = []string{"-device", "VGA"} // a screen, and a keyboard of the board's own
	m := power(t, ctx, spec)
	defer func() { keepCapture(t, "recovery-console.txt", m.Console.String()) }()
	say := func(line, pattern string) {
		t.Helper()
		if err := m.Send(line); err != nil {
			t.Fatal(err)
		}
		expect(t, ctx, m, pattern)
	}
	expect(t, ctx, m, up)
	expect(t, ctx, m, `Press Enter for the console`)
	say("\r", `s for the drawn screen: `)
	say("box\r", `Slot +A[\s\S]*Enter to go back: `)
	say("\r", `drawn screen: `)
	// Without a parent the box looks for its owner: said by name, with what to do.
	say("health\r", `((no-owner|agent-silent)[\s\S]*what to do|starting)[\s\S]*Enter to go back: `)
	say("\r", `drawn screen: `)
	say("network\r", `10\.77\.0\.1/24[\s\S]*Enter to go back: `)
	say("\r", `drawn screen: `)
	say("support\r", `1  Write a support bundle[\s\S]*Enter to go back: `)
	say("1\r", `USB partition`)
	say("/data/support\r", `Written: tributary-support-[\s\S]*Done\.[\s\S]*Enter to go back: `)
	say("\r", `drawn screen: `)
	say("s\r", `\x1b\[6n`)
	say("\x1b[24;80R", `\x1b\[\?1049h[\s\S]*What this box is`)
	say("p", `drawn screen: `)
	drawnScreens(t, ctx, m)
	say("power\r", `3  Factory reset[\s\S]*Enter to go back: `)
	say("3\r", `Type "erase box" to go on: `)
	say("erase box\r", `the keys are destroyed[\s\S]*the state is empty`)
	expect(t, ctx, m, up)
	expect(t, ctx, m, `Press Enter for the console`)
	say("\r", `s for the drawn screen: `)
	say("box\r", `Enter to go back: `)
	if bad := failures(m); len(bad) > 0 {
		t.Errorf("steps that failed:\n%s", strings.Join(bad, "\n"))
	}
}

// drawnScreens walks through the console on the machine's own screen, and keeps pictures.
func drawnScreens(t *testing.T, ctx context.Context, m *vm.Machine) {
	t.Helper()
	press := func(key string) {
		t.Helper()
		if err := m.Do(ctx, "send-key", map[string]any{"keys": []any{map[string]any{"type": "qcode", "data": key}}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "screen.png")
	// until takes pictures until one is as it should be.
	until := func(what string, is func(image.Image) bool) image.Image {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
			if err := m.Screenshot(ctx, file); err != nil {
				t.Fatal(err)
			}
			picture, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if shown, err := png.Decode(bytes.NewReader(picture)); err == nil && is(shown) {
				return shown
			}
			if time.Now().After(deadline) {
				keepCapture(t, "screen-lost.png", string(picture))
				t.Fatalf("the screen never shows %s", what)
			}
		}
	}
	keep := func(name string) {
		t.Helper()
		picture, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		keepCapture(t, name, string(picture))
	}
	press("ret")
	before := until("the console, with its bar on top", barred)
	keep("screen-box.png")
	for _, name := range []string{"health", "network", "parent", "slots"} {
		press("down")
		before = until("the page "+name, func(now image.Image) bool { return barred(now) && changed(before, now) > 2000 })
		keep("screen-" + name + ".png")
	}
	press("q")
	until("that it was left", func(now image.Image) bool { return !barred(now) })
}

// bright tells whether a dot of the screen shines.
func bright(p image.Image, x, y int) bool {
	r, g, b, _ := p.At(x, y).RGBA()
	return r+g+b > 3*0x6000
}

// barred: the topmost line is drawn in reverse.
func barred(p image.Image) bool {
	size, n := p.Bounds().Size(), 0
	for x := range size.X {
		if bright(p, x, 1) {
			n++
		}
	}
	return n > size.X*9/10
}

// changed counts the dots that differ.
func changed(a, b image.Image) (n int) {
	size := b.Bounds().Size()
	if a.Bounds().Size() != size {
		return size.X * size.Y
	}
	for y := range size.Y {
		for x := range size.X {
			if bright(a, x, y) != bright(b, x, y) {
				n++
			}
		}
	}
	return n
}
