package hardware

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// disks reads the block devices that hang on hardware.
func (l *looker) disks() {
	const root = "sys/block"
	asked := map[string]*wear{}
	for _, name := range l.names(root, maxLinks, "disks") {
		dir := root + "/" + name + "/"
		at := l.follow(root + "/" + name)
		if l.text(dir+"hidden") == "1" { // one of the ways to an NVMe disk
			continue
		}
		if at == "" || strings.Contains(at, "/virtual/") && !strings.Contains(at, "/nvme-subsystem/") {
			continue
		}
		d := api.Disk{Name: name, Bus: bus(name, at), Model: l.word(dir + "device/model"), Serial: l.word(dir + "device/serial"), Firmware: l.word(dir + "device/firmware_rev"),
			Rotational: l.text(dir+"queue/rotational") == "1", Removable: l.text(dir+"removable") == "1", ReadOnly: l.text(dir+"ro") == "1", PCI: pciOf(at)}
		if d.PCI == "" && d.Bus == "nvme" { // a disk to which several ways may lead
			n, _, _ := strings.Cut(strings.TrimPrefix(name, "nvme"), "n")
			d.PCI = pciOf(l.follow("sys/class/nvme/nvme" + n))
		}
		if sectors, ok := l.number(dir + "size"); ok && sectors > 0 && sectors < 1<<53 { // always of 512 bytes
			d.Bytes = sectors << 9
		}
		if i := slices.IndexFunc(l.out.PCI, func(f api.PCIFunction) bool { return f.Address == d.PCI }); i >= 0 {
			d.Node = l.out.PCI[i].Node
		}
		switch d.Bus {
		case "nvme":
			l.nvme(&d, asked)
		case "mmc":
			l.mmc(&d, dir)
		default:
			d.Serial = l.firstWord(d.Serial, dir+"serial") // virtio
			d.Firmware = l.firstWord(d.Firmware, dir+"device/rev")
			if state := l.word(dir + "device/state"); d.Bus != "virtio" && state != "" && state != "running" { // SCSI, SATA, USB
				d.Faults = append(d.Faults, state)
			} else if d.Bus == "sata" { // one that is not running would not answer
				l.sata(&d)
			}
		}
		if d.Bus == "virtio" {
			d.Rotational = false // the host's to know
		}
		if d.Bytes == 0 && (d.Removable || d.Bus == "") {
			continue // a reader without a card
		}
		if len(l.out.Disks) == maxDisks {
			l.out.Cut = append(l.out.Cut, "disks")
			return
		}
		l.out.Disks = append(l.out.Disks, d)
	}
}

func (l *looker) firstWord(known, name string) string {
	if known != "" {
		return known
	}
	return l.word(name)
}

// bus says what a disk hangs on, by its name and its place among the devices.
func bus(name, at string) string {
	switch {
	case strings.HasPrefix(name, "nvme"):
		return "nvme"
	case strings.HasPrefix(name, "mmcblk"):
		return "mmc"
	case strings.Contains(at, "/usb"):
		return "usb"
	case strings.Contains(at, "/ata"):
		return "sata"
	case strings.Contains(at, "/virtio"):
		return "virtio"
	case strings.HasPrefix(name, "sd"), strings.HasPrefix(name, "sr"):
		return "scsi"
	}
	return ""
}

// wear is what a controller says of its life.
type wear struct {
	used, spare int
	errors      int64
	faults      []string
}

// nvme adds what the controller tells; several disks may be of one.
func (l *looker) nvme(d *api.Disk, asked map[string]*wear) {
	n, _, _ := strings.Cut(strings.TrimPrefix(d.Name, "nvme"), "n")
	if !digits(n) {
		return
	}
	controller := "nvme" + n
	if state := l.word("sys/class/nvme/" + controller + "/state"); state != "" && state != "live" {
		d.Faults = append(d.Faults, state)
		return // it would not answer
	}
	w, known := asked[controller]
	if !known && l.Asked.NVMe != nil {
		log, _ := l.Asked.NVMe(controller)
		w = smart(log)
	}
	asked[controller] = w
	if w == nil {
		return
	}
	used, spare := w.used, w.spare
	d.Wear, d.Spare, d.MediaErrors = &used, &spare, w.errors
	d.Faults = append(d.Faults, w.faults...)
}

// warnings of the SMART log's first byte (NVM Express Base Specification 2.0, figure 207).
var nvmeWarnings = []string{"spare low", "too hot or too cold", "unreliable", "read only", "backup of its memory failed", "persistent memory read only"}

// smart reads a controller's SMART log: bytes 0 the warnings, 3 spare, 5 percent used,
// 160 media errors (low half).
func smart(log []byte) *wear {
	if len(log) < 176 {
		return nil
	}
	w := &wear{spare: min(int(log[3]), 100), used: int(log[5]), errors: int64(min(binary.LittleEndian.Uint64(log[160:]), 1<<62))}
	for b := log[0]; b != 0; b &= b - 1 {
		if i := bits.TrailingZeros8(b); i < len(nvmeWarnings) {
			w.faults = append(w.faults, nvmeWarnings[i])
		}
	}
	return w
}

// mmc reads an eMMC's own estimate (JESD84-B51, DEVICE_LIFE_TIME_EST): each step of two is
// a tenth of its life, 11 more than all. PRE_EOL_INFO: 2 warning, 3 urgent.
func (l *looker) mmc(d *api.Disk, dir string) {
	d.Model, d.Firmware = l.firstWord(d.Model, dir+"device/name"), l.firstWord(l.word(dir+"device/fwrev"), dir+"device/prv")
	for _, step := range strings.Fields(l.text(dir + "device/life_time")) {
		n, err := strconv.ParseInt(step, 0, 16)
		if err != nil || n < 1 || n > 11 { // 0: not defined
			continue
		}
		if used := int(10 * n); d.Wear == nil || used > *d.Wear {
			d.Wear = &used
		}
	}
	switch n, _ := l.number(dir + "device/pre_eol_info"); n {
	case 2:
		d.Faults = append(d.Faults, "spare low")
	case 3:
		d.Faults = append(d.Faults, "spare all but used up")
	}
}
