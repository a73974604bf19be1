package hardware

import (
	"encoding/binary"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// ATA is what a SATA disk answers, blocks of 512 bytes as it sent them. A block that it did not give is empty.
type ATA struct {
	// Identity is its IDENTIFY DEVICE data (ATA8-ACS, 7.16).
	Identity []byte `json:"identity,omitempty"`
	// SMART is its table of attributes: each maker's own, by a format that all keep to.
	SMART []byte `json:"smart,omitempty"`
	// Errors and Endurance are pages 4 and 7 of the device statistics log (ACS-3, A.5), which says the same for all.
	Errors    []byte `json:"errors,omitempty"`
	Endurance []byte `json:"endurance,omitempty"`
	// Failing: one of its attributes is beyond the threshold that its maker set (SMART RETURN STATUS).
	Failing bool `json:"failing,omitempty"`
}

const ataBlock = 512

// ataLife is where makers of SATA flash tell what is left of its life, in percent from 100 down, and of its spare blocks: each
// by another attribute, and the same number means something else in another's table. Who is not here tells it by the
// statistics, or not.
var ataLife = []struct {
	model      string
	life, left byte
}{
	{"INTEL ", 233, 232}, {"SOLIDIGM ", 233, 232}, {"SAMSUNG ", 177, 0}, {"MZ7", 177, 0},
	{"MICRON", 202, 0}, {"MTFD", 202, 0}, {"CRUCIAL", 202, 0}, {"CT", 202, 0}, {"KINGSTON ", 231, 0},
}

// ataUncorrectable is the attribute that counts reads that failed: all who have it agree upon that.
const ataUncorrectable = 187

// sata adds what a disk on SATA tells of itself.
func (l *looker) sata(d *api.Disk) {
	if !strings.HasPrefix(d.Name, "sd") || l.Asked.ATA == nil { // CD drives hang there as well
		return
	}
	a, ok := l.Asked.ATA(d.Name)
	if !ok {
		return
	}
	if d.Serial == "" {
		d.Serial = ataText(a.Identity, 20, 20)
	}
	if a.Failing {
		d.Faults = append(d.Faults, "failing by its own word")
	}
	if n, ok := statistic(a.Errors, 4); ok {
		d.MediaErrors = int64(n & 0xffffffff)
	} else if _, raw, ok := attribute(a.SMART, ataUncorrectable); ok {
		d.MediaErrors = raw
	}
	if d.Rotational {
		return
	}
	for _, m := range ataLife {
		if !strings.HasPrefix(strings.ToUpper(d.Model), m.model) {
			continue
		}
		if left, _, ok := attribute(a.SMART, m.life); ok && left <= 100 {
			used := 100 - left
			d.Wear = &used
		}
		if spare, _, ok := attribute(a.SMART, m.left); m.left != 0 && ok && spare <= 100 {
			d.Spare = &spare
		}
	}
	if n, ok := statistic(a.Endurance, 7); ok {
		used := int(n & 0xff)
		d.Wear = &used
	}
}

// attribute finds one of thirty, of 12 bytes each from byte 2: its id, two of flags, its value, the worst so far, six of
// its own count.
func attribute(table []byte, id byte) (value int, raw int64, ok bool) {
	if len(table) < ataBlock {
		return 0, 0, false
	}
	for i := range 30 {
		if a := table[2+12*i:][:12]; a[0] == id {
			return int(a[3]), int64(binary.LittleEndian.Uint64(a[4:]) >> 8 & (1<<48 - 1)), true
		}
	}
	return 0, 0, false
}

// statistic reads the first of a page: its value, and a byte of flags, of which two say that it is there and holds.
func statistic(page []byte, number byte) (value uint64, ok bool) {
	if len(page) < ataBlock || page[2] != number || page[15]&0xc0 != 0xc0 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(page[8:]) & (1<<56 - 1), true
}

// ataText is a text of IDENTIFY DEVICE: two letters a word, the first in the high byte.
func ataText(identity []byte, from, n int) string {
	if len(identity) < ataBlock {
		return ""
	}
	text := make([]byte, n)
	for i := range text {
		text[i] = identity[from+i^1]
	}
	return clip(string(text))
}

// What IDENTIFY DEVICE says of the disk's abilities (words 84, 85 and 87): each word is in force when its two highest bits
// are 01.
func ataSMART(identity []byte) bool {
	return len(identity) >= ataBlock && identity[2*87+1]>>6 == 1 && identity[2*85]&1 != 0
}

func ataLogs(identity []byte) bool {
	return len(identity) >= ataBlock && identity[2*87+1]>>6 == 1 && identity[2*87]&(1<<5) != 0
}

// ataRegisters are those that a command left, out of the sense data of SCSI (SAT-3, 12.2.2.6 and 12.2.2.7).
func ataRegisters(sense []byte) (lbaMid, lbaHigh byte, ok bool) {
	switch {
	case len(sense) >= 22 && sense[0]&0x7f == 0x72 && sense[8] == 0x09 && sense[9] >= 12:
		return sense[17], sense[19], true
	case len(sense) >= 12 && sense[0]&0x7f == 0x70:
		return sense[10], sense[11], true
	}
	return 0, 0, false
}
