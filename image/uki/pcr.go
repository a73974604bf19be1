package uki

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strconv"
)

// measured is the order in which systemd-stub extends PCR 11 (its source's UnifiedSection; .pcrsig is never measured).
// Version 252 knew neither .uname nor .sbat.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"}

var magic = regexp.MustCompile(`LoaderInfo: systemd-stub (\d{3})`)

// The newest stub whose order of measuring is known here.
const (
	oldestStub = 252
	newestStub = 257
)

// Extend is what a TPM does to a SHA-256 PCR.
func Extend(pcr [32]byte, event []byte) [32]byte {
	d := sha256.Sum256(event)
	return sha256.Sum256(append(pcr[:], d[:]...))
}

// PCR11 foretells the SHA-256 value of PCR 11 after the stub has run, and after those phases were entered since
// ("enter-initrd", as systemd-pcrphase measures them, or words of one's own).
func PCR11(pe []byte, phases ...string) ([32]byte, error) {
	var pcr [32]byte
	p, err := parse(pe)
	if err != nil {
		return pcr, err
	}
	version, err := p.stubVersion()
	if err != nil {
		return pcr, err
	}
	for _, name := range measured {
		s, ok := p.find(name)
		if !ok || version < 253 && (name == ".uname" || name == ".sbat") {
			continue
		}
		data, err := p.data(s)
		if err != nil {
			return pcr, err
		}
		pcr = Extend(pcr, append([]byte(name), 0))
		pcr = Extend(pcr, data)
	}
	for _, word := range phases {
		pcr = Extend(pcr, []byte(word))
	}
	return pcr, nil
}

func (p *image) stubVersion() (int, error) {
	s, ok := p.find(".sdmagic")
	if !ok {
		return 0, fmt.Errorf("the image has no section .sdmagic: not systemd's stub")
	}
	data, err := p.data(s)
	m := magic.FindSubmatch(data)
	if err != nil || m == nil {
		return 0, fmt.Errorf("the stub does not name its version")
	}
	v, err := strconv.Atoi(string(m[1]))
	if err != nil || v < oldestStub || v > newestStub {
		return 0, fmt.Errorf("systemd-stub %s: what it measures is known from %d to %d; compare a real boot, then extend this range", m[1], oldestStub, newestStub)
	}
	return v, nil
}
