package hardware

import (
	"encoding/binary"
	"io/fs"
	"testing"
	"testing/fstest"

	"tributary.dev/tributary/pkg/api"
)

// ataIdentity is what a disk says of itself: a serial number, that it watches itself, and that it keeps logs.
func ataIdentity(serial string) []byte {
	b := make([]byte, ataBlock)
	for i := range 20 {
		c := byte(' ')
		if i < len(serial) {
			c = serial[i]
		}
		b[20+i^1] = c
	}
	b[2*85], b[2*87], b[2*87+1] = 1, 1<<5, 1<<6
	return b
}

// ataTable is a table of attributes: id, value, count.
func ataTable(list ...[3]int) []byte {
	b := make([]byte, ataBlock)
	for i, a := range list {
		at := b[2+12*i:]
		binary.LittleEndian.PutUint64(at[4:], uint64(a[2])<<8)
		at[0], at[3], at[4], at[11] = byte(a[0]), byte(a[1]), 1, 0xee // the worst value, and what is none's, are no part of the count
	}
	return b
}

// ataPage is a page of statistics with one value.
func ataPage(number, flags byte, value uint64) []byte {
	b := make([]byte, ataBlock)
	binary.LittleEndian.PutUint64(b[8:], value)
	b[2], b[15] = number, flags
	return b
}

// oneDisk looks at a machine with one SATA disk.
func oneDisk(t testing.TB, model string, a ATA, ok bool, rotational string) api.Disk {
	t.Helper()
	const at = "devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"
	tree := fstest.MapFS{
		"sys/block/sda":                   {Mode: fs.ModeSymlink, Data: []byte("../" + at)},
		"sys/" + at + "/size":             {Data: []byte("2048\n")},
		"sys/" + at + "/queue/rotational": {Data: []byte(rotational + "\n")},
		"sys/" + at + "/device/state":     {Data: []byte("running\n")},
		"sys/" + at + "/device/model":     {Data: []byte(model + "\n")},
		"sys/block/sr0":                   {Mode: fs.ModeSymlink, Data: []byte("../devices/pci0000:00/0000:00:1f.2/ata2/x/block/sr0")},
		"sys/devices/pci0000:00/0000:00:1f.2/ata2/x/block/sr0/size": {Data: []byte("2048\n")},
	}
	i := Look(Source{Root: tree, Asked: Asked{ATA: func(name string) (ATA, bool) {
		if name != "sda" {
			t.Errorf("%s is asked", name)
		}
		return a, ok
	}}})
	if len(i.Disks) != 2 || i.Disks[0].Name != "sda" || i.Disks[0].Bus != "sata" {
		t.Fatalf("disks: %+v", i.Disks)
	}
	return i.Disks[0]
}

func TestSATAWear(t *testing.T) {
	const none = -1
	seven := ataPage(7, 0xc0, 42)
	for _, c := range []struct {
		name, model  string
		a            ATA
		silent       bool
		rotational   string
		wear, spare  int
		errors       int64
		serial, said string
	}{
		{name: "no answer", silent: true, wear: none, spare: none},
		{name: "no attributes", a: ATA{Identity: ataIdentity("QM00001")}, wear: none, spare: none, serial: "QM00001"},
		{name: "Samsung's", model: "Samsung SSD 870 ", a: ATA{SMART: ataTable([3]int{5, 100, 0}, [3]int{177, 93, 1 << 40}, [3]int{187, 99, 0x010203040506})}, wear: 7, spare: none, errors: 0x010203040506},
		{name: "Intel's", model: "INTEL SSDSC2KB48", a: ATA{SMART: ataTable([3]int{232, 98, 0}, [3]int{233, 60, 9})}, wear: 40, spare: 98},
		{name: "Micron's", model: "CT500MX500SSD1", a: ATA{SMART: ataTable([3]int{202, 1, 99})}, wear: 99, spare: none},
		{name: "another's same number", model: "WDC WDS500G2B0A", a: ATA{SMART: ataTable([3]int{233, 100, 900}, [3]int{232, 100, 0}, [3]int{177, 1, 1})}, wear: none, spare: none},
		{name: "no percent", model: "INTEL SSDSC2KB48", a: ATA{SMART: ataTable([3]int{232, 200, 0}, [3]int{233, 253, 9})}, wear: none, spare: none},
		{name: "a disk that turns", model: "SAMSUNG HD103SJ", a: ATA{SMART: ataTable([3]int{187, 90, 3}, [3]int{177, 93, 0}), Endurance: seven}, rotational: "1", wear: none, spare: none, errors: 3},
		{name: "statistics are for all", model: "SAMSUNG MZ7LH480", a: ATA{SMART: ataTable([3]int{177, 93, 0}, [3]int{187, 1, 5}), Endurance: seven, Errors: ataPage(4, 0xc0, 2)}, wear: 42, spare: none, errors: 2},
		{name: "worn out", a: ATA{Endurance: ataPage(7, 0xc0, 255)}, wear: 255, spare: none},
		{name: "statistics that do not hold", model: "SAMSUNG MZ7LH480", a: ATA{SMART: ataTable([3]int{177, 93, 0}), Endurance: ataPage(7, 0x80, 42), Errors: ataPage(4, 0x40, 2)}, wear: 7, spare: none},
		{name: "another page", a: ATA{Endurance: ataPage(6, 0xc0, 42)}, wear: none, spare: none},
		{name: "failing", a: ATA{Identity: ataIdentity("S3Z"), Failing: true}, wear: none, spare: none, serial: "S3Z", said: "failing by its own word"},
		{name: "cut off", model: "SAMSUNG MZ7LH480", a: ATA{Identity: ataIdentity("x")[:100], SMART: ataTable([3]int{177, 93, 0})[:500], Endurance: seven[:16]}, wear: none, spare: none},
	} {
		t.Run(c.name, func(t *testing.T) {
			rotational := "0"
			if c.rotational != "" {
				rotational = c.rotational
			}
			d := oneDisk(t, c.model, c.a, !c.silent, rotational)
			percent := func(n *int) int {
				if n == nil {
					return none
				}
				return *n
			}
			said := ""
			if len(d.Faults) > 0 {
				said = d.Faults[0]
			}
			if percent(d.Wear) != c.wear || percent(d.Spare) != c.spare || d.MediaErrors != c.errors || d.Serial != c.serial || said != c.said {
				t.Errorf("wear %d, spare %d: %+v", percent(d.Wear), percent(d.Spare), d)
			}
		})
	}
}

func TestATAAbilities(t *testing.T) {
	b := ataIdentity("x")
	if !ataSMART(b) || !ataLogs(b) {
		t.Error("a disk that watches itself and keeps logs does not")
	}
	for at, without := range map[int]byte{2 * 85: 0, 2*87 + 1: 0x80} {
		other := ataIdentity("x")
		other[at] = without
		if ataSMART(other) {
			t.Errorf("byte %d: it watches itself", at)
		}
	}
	b[2*87] = 0
	if ataLogs(b) || !ataSMART(b) {
		t.Error("a disk without logs has some")
	}
}

// Sense data comes in two formats.
func TestATARegisters(t *testing.T) {
	descriptor := make([]byte, 22)
	descriptor[0], descriptor[8], descriptor[9], descriptor[17], descriptor[19] = 0x72, 0x09, 12, failingMid, failingHigh
	fixed := make([]byte, 18)
	fixed[0], fixed[10], fixed[11] = 0xf0, failingMid, failingHigh
	for name, sense := range map[string][]byte{"descriptor": descriptor, "fixed": fixed} {
		if mid, high, ok := ataRegisters(sense); !ok || mid != failingMid || high != failingHigh {
			t.Errorf("%s: %x %x %v", name, mid, high, ok)
		}
	}
	descriptor[8] = 0
	if _, _, ok := ataRegisters(descriptor); ok {
		t.Error("another descriptor gives registers")
	}
	if _, _, ok := ataRegisters(nil); ok {
		t.Error("nothing gives registers")
	}
}

func FuzzATA(f *testing.F) {
	f.Add("SAMSUNG MZ7LH480", ataIdentity("x"), ataTable([3]int{177, 93, 0}), ataPage(4, 0xc0, 2), ataPage(7, 0xc0, 42), true)
	f.Fuzz(func(t *testing.T, model string, identity, smart, errors, endurance []byte, failing bool) {
		d := oneDisk(t, model, ATA{identity, smart, errors, endurance, failing}, true, "0")
		if d.MediaErrors < 0 || d.Wear != nil && (*d.Wear < 0 || *d.Wear > 255) || d.Spare != nil && (*d.Spare < 0 || *d.Spare > 100) || len(d.Serial) > maxWord {
			t.Errorf("%+v", d)
		}
		ataRegisters(identity)
		ataSMART(identity)
		ataLogs(identity)
	})
}
