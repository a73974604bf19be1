package main

import (
	"encoding/json"
	"os"
	"slices"

	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// wordsFile keeps what the TPM said of PCR 7 before that changed, until the core has believed what came of it.
const wordsFile = "/state/foretold.json"

// keptWord is one of them, with the start in which it was said.
type keptWord struct {
	attest.Word
	Boot string `json:"boot"`
}

// keptWords reads them; what cannot be read is none: the core then wants a person's approval.
func keptWords(file string) (words []keptWord) {
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &words) != nil {
		return nil
	}
	return words[max(0, len(words)-attest.MaxWords):]
}

// keepWord adds one; the oldest go.
func keepWord(file, boot string, w attest.Word) error {
	words := append(keptWords(file), keptWord{w, boot})
	b, err := json.Marshal(words[max(0, len(words)-attest.MaxWords):])
	if err != nil {
		return err
	}
	return atomicfile.Write(file, b, 0o600)
}

// forgetWords drops those of earlier starts: the core has taken PCR 7 as it is now for known.
func forgetWords(file, boot string) {
	words := keptWords(file)
	left := slices.DeleteFunc(slices.Clone(words), func(w keptWord) bool { return w.Boot != boot })
	if len(left) == len(words) {
		return
	}
	if b, err := json.Marshal(left); err == nil {
		_ = atomicfile.Write(file, b, 0o600) // else they are said again, and dropped then
	}
}
