package machines

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tributary.dev/tributary/tests/vm"
)

// TestRecoveryConsole drives the console of a flashed machine by script over its serial
// line: plain, drawn, and a factory reset, after which the box makes itself anew. What was
// on the line is kept in TRIBUTARY_CAPTURES for people to look at.
func TestRecoveryConsole(t *testing.T) {
	spec := flashed(t, "amd64", "name: box\nnetwork: {uplinks: [{addresses: [10.77.0.1/24]}]}\n")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	wires := vm.NewSwitch()
	t.Cleanup(wires.Close)
	spec.NICs, spec.Life = []vm.NIC{{Switch: wires}}, 3*patience
	m := power(t, ctx, spec)
	if dir := os.Getenv("TRIBUTARY_CAPTURES"); dir != "" {
		defer func() {
			if err := os.WriteFile(filepath.Join(dir, "recovery-console.txt"), []byte(m.Console.String()), 0o644); err != nil {
				t.Error(err)
			}
		}()
	}
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
