package api

import (
	"runtime"
	"strings"
	"testing"
)

// The costliest inputs of the allowed size stay below a cap on what they allocate.
func TestDecodeMemory(t *testing.T) {
	const most = 512 << 20 // bytes allocated in all, not at one time
	fill := func(head, unit string) string { return head + strings.Repeat(unit, (maxInput-len(head))/len(unit)) }
	for name, in := range map[string]string{
		"list":     fill("", "- \n"),
		"flow":     fill("[", ","),
		"numbers":  fill("[", "1,"),
		"mapping":  fill("{", "a:,"),
		"most":     "[" + strings.Repeat("1,", maxSeparators-10) + "]",
		"most{":    "{" + strings.Repeat("a:,", maxSeparators-10) + "}",
		"json":     fill(`{"a":[`, "1,"),
		"opened":   fill("", "["),
		"opened{":  fill("", "{"),
		"anchors":  fill("", "- &a\n"),
		"comments": fill("a: b\n", "#\n"),
		"docs":     fill("", "---\n"),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := Decode([]byte(in)); err != nil {
				if c := CodeOf(err); c != Invalid && c != TooLarge {
					t.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > most {
				t.Errorf("allocated %d MiB", used>>20)
			} else {
				t.Logf("allocated %d MiB", used>>20)
			}
		})
	}
}
