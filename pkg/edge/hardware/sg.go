package hardware

import (
	"os"
	"path/filepath"
	"runtime"
	"unsafe"
)

// sgCommand is struct sg_io_hdr of scsi/sg.h.
type sgCommand struct {
	kind, direction                        int32
	commandLen, senseLen                   uint8
	iovecs                                 uint16
	dataLen                                uint32
	data, command, sense                   unsafe.Pointer
	timeoutMilli, flags                    uint32
	pack                                   int32
	_                                      unsafe.Pointer
	status, maskedStatus, message, senseOf uint8
	host, driver                           uint16
	rest                                   int32
	tookMilli, info                        uint32
}

// Of scsi/sg.h, SAT-3 (12.2.2.2: the command ATA PASS-THROUGH with 16 bytes) and ATA8-ACS.
const (
	sgIO          = 0x2285
	sgFromDevice  = -3
	sgNoData      = -1
	senseBytes    = 32
	passThrough16 = 0x85
	ataNoData     = 3 << 1 // protocols
	ataDataIn     = 4 << 1
	ataExtended   = 1
	ataBlocksIn   = 0x0e // from the device, in blocks, as many as the count says
	ataGiveBack   = 0x20 // the registers, as sense data
	ataIdentify   = 0xec
	ataSmart      = 0xb0
	ataReadLog    = 0x2f
	smartData     = 0xd0
	smartStatus   = 0xda
	smartMid      = 0x4f
	smartHigh     = 0xc2
	failingMid    = 0xf4
	failingHigh   = 0x2c
	logStatistics = 0x04
)

// askATA asks a disk: sda. ok is false where it does not answer, or does not watch itself.
func askATA(disk string) (a ATA, ok bool) {
	f, err := os.Open(filepath.Join("/dev", filepath.Base(disk)))
	if err != nil {
		return a, false
	}
	defer f.Close()
	read := func(cdb [16]byte) []byte {
		block := make([]byte, ataBlock)
		if _, err := sendATA(f, cdb, block); err != nil {
			return nil
		}
		return block
	}
	if a.Identity = read([16]byte{0: passThrough16, 1: ataDataIn, 2: ataBlocksIn, 6: 1, 14: ataIdentify}); !ataSMART(a.Identity) {
		return a, a.Identity != nil
	}
	a.SMART = read([16]byte{0: passThrough16, 1: ataDataIn, 2: ataBlocksIn, 4: smartData, 6: 1, 10: smartMid, 12: smartHigh, 14: ataSmart})
	sense, err := sendATA(f, [16]byte{0: passThrough16, 1: ataNoData, 2: ataGiveBack, 4: smartStatus, 10: smartMid, 12: smartHigh, 14: ataSmart}, nil)
	if mid, high, ok := ataRegisters(sense); err == nil && ok {
		a.Failing = mid == failingMid && high == failingHigh
	}
	if ataLogs(a.Identity) {
		page := func(n byte) []byte {
			return read([16]byte{0: passThrough16, 1: ataDataIn | ataExtended, 2: ataBlocksIn, 6: 1, 8: logStatistics, 10: n, 14: ataReadLog})
		}
		a.Errors, a.Endurance = page(4), page(7)
	}
	return a, true
}

// sendATA sends a command, which fills block, and gives the sense data that came back.
func sendATA(f *os.File, cdb [16]byte, block []byte) (sense []byte, err error) {
	sense = make([]byte, senseBytes)
	cmd := &sgCommand{kind: 'S', direction: sgNoData, commandLen: uint8(len(cdb)), senseLen: senseBytes, command: unsafe.Pointer(&cdb[0]), sense: unsafe.Pointer(&sense[0]), timeoutMilli: 5000}
	if len(block) > 0 {
		cmd.direction, cmd.dataLen, cmd.data = sgFromDevice, uint32(len(block)), unsafe.Pointer(&block[0])
	}
	var pin runtime.Pinner // the kernel follows pointers that lie behind the one that it is given
	defer pin.Unpin()
	for _, p := range []any{cmd, &cdb[0], &sense[0]} {
		pin.Pin(p)
	}
	if len(block) > 0 {
		pin.Pin(&block[0])
	}
	if err := control(f, sgIO, unsafe.Pointer(cmd)); err != nil {
		return nil, err
	}
	if failed := cmd.host != 0 || len(block) > 0 && (cmd.status != 0 || cmd.rest != 0); failed {
		return nil, os.ErrInvalid
	}
	return sense[:min(int(cmd.senseOf), senseBytes)], nil
}
