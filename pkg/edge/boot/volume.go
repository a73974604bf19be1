package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// A volume is made in steps that a power cut may part, so its LUKS2 header carries how far
// that went: its label ends in "-new" until the file system in it is whole.
const newSuffix = "-new"

// luksHeaders are where LUKS2 keeps its two headers (LUKS2 on-disk format, 3.1), with the
// 16 KiB of metadata that cryptsetup gives.
var luksHeaders = [2]int64{0, 0x4000}

// volume is what lies at the start of a partition.
type volume struct {
	Blank  [2]bool   // nothing but zeros where a header would be
	Labels [2]string // of the headers that have LUKS2's magic
	Files  bool      // an unencrypted ext file system
}

// probe reads what decides. It does not check the headers' sums: cryptsetup does, and mends
// one header by the other.
func probe(r io.ReaderAt) (v volume, err error) {
	for i, at := range luksHeaders {
		b := make([]byte, 4096)
		if _, err := r.ReadAt(b, at); err != nil {
			return v, err
		}
		v.Blank[i] = len(bytes.Trim(b, "\x00")) == 0
		magic := []byte{'L', 'U', 'K', 'S', 0xba, 0xbe}
		if i == 1 {
			magic = []byte{'S', 'K', 'U', 'L', 0xba, 0xbe}
		}
		if bytes.HasPrefix(b, magic) {
			label, _, _ := bytes.Cut(b[24:72], []byte{0})
			v.Labels[i] = string(label)
		}
		if i == 0 {
			v.Files = b[1080] == 0x53 && b[1081] == 0xef
		}
	}
	return v, nil
}

type volumeAction string

const (
	openVolume   volumeAction = "open"
	makeVolume   volumeAction = "make"
	refuseVolume volumeAction = "refuse"
)

// decide says what to do with a partition that is to hold the volume of that label. Only
// what is empty, or was never finished, is made anew: anything else may be the box's
// memory, damaged, and no unattended program throws that away.
func (v volume) decide(label string) (volumeAction, error) {
	if v.Labels[0] == label || v.Labels[1] == label {
		return openVolume, nil
	}
	if v.Files {
		return refuseVolume, errors.New("the partition holds a file system that is not encrypted")
	}
	for i := range v.Labels {
		if !v.Blank[i] && v.Labels[i] != label+newSuffix {
			// A second header alone may be rubbish: what luksFormat wipes first is the first.
			if i == 1 && (v.Blank[0] || v.Labels[0] == label+newSuffix) && v.Labels[1] == "" {
				continue
			}
			return refuseVolume, fmt.Errorf("the partition holds something else (header %d: label %q)", i+1, v.Labels[i])
		}
	}
	return makeVolume, nil
}

// extSize reads an ext4 superblock: how many bytes the file system takes, and whether it
// was left mounted or is known to be damaged (s_state, bit 0 clean, bit 1 errors).
func extSize(r io.ReaderAt) (size int64, dirty bool, err error) {
	b := make([]byte, 1024)
	if _, err := r.ReadAt(b, 1024); err != nil {
		return 0, false, err
	}
	u16 := func(at int) int64 { return int64(b[at]) | int64(b[at+1])<<8 }
	u32 := func(at int) int64 { return u16(at) | u16(at+2)<<16 }
	if u16(56) != 0xef53 {
		return 0, false, errors.New("no ext4 file system")
	}
	shift, blocks := u32(24), u32(4)
	if u32(96)&0x80 != 0 { // INCOMPAT_64BIT
		blocks |= u32(0x150) << 32
	}
	if shift > 6 || blocks <= 0 || blocks > 1<<40 {
		return 0, false, errors.New("an ext4 superblock out of bounds")
	}
	return blocks << (10 + shift), u16(58)&1 == 0 || u16(58)&2 != 0, nil
}
