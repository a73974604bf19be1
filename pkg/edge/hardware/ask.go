package hardware

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// askKernel is Asked of the machine that this runs on.
func askKernel() Asked {
	return Asked{Card: askCard, Eswitch: askEswitch, NVMe: rarely(askNVMe), ATA: rarely(askATA)}
}

// Commands of linux/ethtool.h that golang.org/x/sys lacks.
const (
	ethtoolGStrings   = 0x1b
	ethtoolGSSetInfo  = 0x37
	ethtoolGFeatures  = 0x3a
	ethSSFeatures     = 4
	ethGStringLen     = 32
	maxFeatures       = 1024
	nvmeAdminCommand  = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_passthru_cmd)
	nvmeGetLogPage    = 0x02
	nvmeLogSMART      = 0x02
	nvmeAllNamespaces = 0xffffffff
)

// askCard asks an interface's driver. What it does not answer is left empty.
func askCard(name string) (c Card) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return c
	}
	defer unix.Close(fd)
	if info, err := unix.IoctlGetEthtoolDrvinfo(fd, name); err == nil {
		c.Firmware = unix.ByteSliceToString(info.Fw_version[:])
	}
	if names := featureNames(fd, name); len(names) > 0 {
		c.Features = featuresOn(fd, name, names)
	}
	return c
}

// ethtool sends one command block, which the kernel fills.
func ethtool(fd int, name string, block []byte) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	// struct ifreq holds a pointer here; unix.Ifreq has no method for it.
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}{data: unsafe.Pointer(&block[0])}
	copy(req.name[:], ifr.Name())
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// featureNames are those of this kernel, in the order of its bits.
func featureNames(fd int, name string) []string {
	set := make([]byte, 20) // struct ethtool_sset_info with room for one count
	binary.NativeEndian.PutUint32(set, ethtoolGSSetInfo)
	binary.NativeEndian.PutUint64(set[8:], 1<<ethSSFeatures)
	if ethtool(fd, name, set) != nil {
		return nil
	}
	n := int(binary.NativeEndian.Uint32(set[16:]))
	if n <= 0 || n > maxFeatures {
		return nil
	}
	block := make([]byte, 12+n*ethGStringLen) // struct ethtool_gstrings
	binary.NativeEndian.PutUint32(block, ethtoolGStrings)
	binary.NativeEndian.PutUint32(block[4:], ethSSFeatures)
	binary.NativeEndian.PutUint32(block[8:], uint32(n))
	if ethtool(fd, name, block) != nil {
		return nil
	}
	names := make([]string, n)
	for i := range names {
		text := block[12+i*ethGStringLen:][:ethGStringLen]
		text, _, _ = bytes.Cut(text, []byte{0})
		names[i] = string(text)
	}
	return names
}

func featuresOn(fd int, name string, names []string) (on []string) {
	blocks := (len(names) + 31) / 32
	b := make([]byte, 8+16*blocks) // struct ethtool_gfeatures: available, requested, active, never_changed
	binary.NativeEndian.PutUint32(b, ethtoolGFeatures)
	binary.NativeEndian.PutUint32(b[4:], uint32(blocks))
	if ethtool(fd, name, b) != nil {
		return nil
	}
	for i, feature := range names {
		if active := binary.NativeEndian.Uint32(b[8+16*(i/32)+8:]); active&(1<<(i%32)) != 0 && feature != "" {
			on = append(on, feature)
		}
	}
	return on
}

// askEswitch asks devlink.
func askEswitch() map[string]string {
	devices, err := netlink.DevLinkGetDeviceList()
	if err != nil {
		return nil // no devlink in this kernel
	}
	out := map[string]string{}
	for _, d := range devices {
		if d.BusName == "pci" && d.Attrs.Eswitch.Mode != "" {
			out[d.DeviceName] = d.Attrs.Eswitch.Mode
		}
	}
	return out
}

// nvmeCommand is struct nvme_passthru_cmd of linux/nvme_ioctl.h.
type nvmeCommand struct {
	opcode, flags        uint8
	_                    uint16
	nsid, cdw2, cdw3     uint32
	metadata, addr       uint64
	metadataLen, dataLen uint32
	cdw10, cdw11, cdw12  uint32
	cdw13, cdw14, cdw15  uint32
	timeoutMilli, result uint32
}

// askNVMe reads a controller's SMART log; ok is false where it does not answer.
func askNVMe(controller string) (log []byte, ok bool) {
	f, err := os.Open(filepath.Join("/dev", filepath.Base(controller)))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	log = make([]byte, 512)
	cmd := nvmeCommand{opcode: nvmeGetLogPage, nsid: nvmeAllNamespaces, addr: uint64(uintptr(unsafe.Pointer(&log[0]))), dataLen: uint32(len(log)),
		cdw10: nvmeLogSMART | uint32(len(log)/4-1)<<16, timeoutMilli: 5000}
	if err := control(f, nvmeAdminCommand, unsafe.Pointer(&cmd)); err != nil {
		return nil, false
	}
	return log, true
}

func control(f *os.File, request uintptr, arg unsafe.Pointer) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) { _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)) })
	if errno != 0 {
		return errno
	}
	return err
}

// rare is how long an answer that moves slowly is kept: each question wakes the disk.
const rare = 10 * time.Minute

// rarely keeps answers for a while. One that failed is asked for again.
func rarely[T any](ask func(string) (T, bool)) func(string) (T, bool) {
	type kept struct {
		at     time.Time
		answer T
	}
	var mu sync.Mutex
	all := map[string]kept{}
	return func(name string) (T, bool) {
		mu.Lock()
		defer mu.Unlock()
		if k, ok := all[name]; ok && time.Since(k.at) < rare {
			return k.answer, true
		}
		answer, ok := ask(name)
		delete(all, name)
		if ok {
			all[name] = kept{time.Now(), answer}
		}
		return answer, ok
	}
}
