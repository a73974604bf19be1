package main

import (
	"path/filepath"
	"testing"

	"tributary.dev/tributary/pkg/tpm/attest"
)

// TestWords: the newest are kept, and those of this start alone once the core believes what is.
func TestWords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "foretold.json")
	for n := range attest.MaxWords + 2 {
		boot := "first"
		if n > attest.MaxWords {
			boot = "second"
		}
		if err := keepWord(file, boot, attest.Word{Evidence: []byte{byte(n)}}); err != nil {
			t.Fatal(err)
		}
	}
	words := keptWords(file)
	if len(words) != attest.MaxWords || words[0].Evidence[0] != 2 || words[attest.MaxWords-1].Evidence[0] != attest.MaxWords+1 {
		t.Errorf("%+v", words)
	}
	forgetWords(file, "second")
	if words = keptWords(file); len(words) != 1 || words[0].Boot != "second" {
		t.Errorf("%+v", words)
	}
}
