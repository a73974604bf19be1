package keys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/efi"
)

// OVMF, the UEFI firmware of virtual machines, keeps its variables in a file of this layout (EDK2,
// MdeModulePkg/Include/Guid/VariableFormat.h): a firmware volume's header, the store's header, then the variables.
var (
	authenticatedStore = guid("aaf32c78-947b-439a-a180-2e144ec37792")
	secureBootEnable   = guid("f0a30bc7-af08-4556-99c4-001009c93a44")
)

const (
	storeHeader    = 28
	variableHeader = 60
	added          = 0x3f // the state of a variable in force
)

// stored is one variable of the store.
type stored struct {
	name  string
	guid  gpt.GUID
	attrs uint32
	stamp []byte
	data  []byte
}

// store finds where the variables lie in the file.
func store(fd []byte) (from, to int, err error) {
	if len(fd) < 0x100 || string(fd[40:44]) != "_FVH" {
		return 0, 0, errors.New("not a firmware's variable store: no volume header")
	}
	at := int(binary.LittleEndian.Uint16(fd[48:]))
	if at+storeHeader > len(fd) || gpt.GUID(fd[at:at+16]) != authenticatedStore {
		return 0, 0, errors.New("not a firmware's variable store: no authenticated variables")
	}
	size := int(binary.LittleEndian.Uint32(fd[at+16:]))
	if size < storeHeader || at+size > len(fd) {
		return 0, 0, fmt.Errorf("a variable store of %d bytes in a file of %d", size, len(fd))
	}
	return at + storeHeader, at + size, nil
}

// read gives the variables in force, and where the next one would go.
func read(fd []byte) (vars []stored, next int, err error) {
	at, end, err := store(fd)
	if err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	for at+variableHeader <= end && le.Uint16(fd[at:]) == 0x55aa {
		h := fd[at:]
		name, data := int(le.Uint32(h[36:])), int(le.Uint32(h[40:]))
		body := at + variableHeader
		if name < 0 || data < 0 || name > end-body || data > end-body-name {
			return nil, 0, fmt.Errorf("the variable at %d is longer than the store", at)
		}
		if h[2] == added {
			var units []uint16
			for i := 0; i+1 < name; i += 2 {
				units = append(units, le.Uint16(fd[body+i:]))
			}
			vars = append(vars, stored{
				name: string(bytes.TrimRight([]byte(string(utf16.Decode(units))), "\x00")), guid: gpt.GUID(h[44:60]), attrs: le.Uint32(h[4:]),
				stamp: bytes.Clone(h[16:32]), data: bytes.Clone(fd[body+name : body+name+data]),
			})
		}
		at = (body + name + data + 3) &^ 3
	}
	return vars, at, nil
}

// Stored gives the variables in force.
func Stored(fd []byte) (efi.Memory, error) {
	vars, _, err := read(fd)
	out := efi.Memory{}
	for _, v := range vars {
		if err := out.Set(v.name, v.guid, v.attrs, v.data); err != nil {
			return nil, err
		}
	}
	return out, err
}

func put(fd []byte, at, end int, v stored) (int, error) {
	le := binary.LittleEndian
	var name []byte
	for _, u := range utf16.Encode([]rune(v.name + "\x00")) {
		name = le.AppendUint16(name, u)
	}
	if at+variableHeader+len(name)+len(v.data) > end {
		return 0, errors.New("the variable store is full")
	}
	h := fd[at:]
	clear(h[:variableHeader])
	le.PutUint16(h, 0x55aa)
	h[2] = added
	le.PutUint32(h[4:], v.attrs)
	copy(h[16:32], v.stamp)
	le.PutUint32(h[36:], uint32(len(name)))
	le.PutUint32(h[40:], uint32(len(v.data)))
	copy(h[44:], v.guid[:])
	copy(h[variableHeader:], name)
	copy(h[variableHeader+len(name):], v.data)
	return (at + variableHeader + len(name) + len(v.data) + 3) &^ 3, nil
}

// OVMFVars gives a copy of an OVMF or AAVMF variable store (a template without keys, or a vendor's with keys) in which
// this set is enrolled and Secure Boot is on. The keys that the store holds stay in db and KEK beside ours.
func (s *Set) OVMFVars(template []byte, at time.Time) ([]byte, error) {
	out := bytes.Clone(template)
	vars, _, err := read(out)
	if err != nil {
		return nil, err
	}
	from, end, err := store(out)
	if err != nil {
		return nil, err
	}
	lists := map[string][]byte{}
	var keep []stored
	for _, v := range vars {
		switch v.name {
		case "db", "KEK":
			lists[v.name] = v.data
		case "PK", "SecureBootEnable":
		default:
			keep = append(keep, v)
		}
	}
	stamp := efiTime(at)
	keep = append(keep,
		stored{"db", securityDB, attributes, stamp, append(lists["db"], List(s.Owner(), s.Certificates()...)...)},
		stored{"KEK", globalVariable, attributes, stamp, append(lists["KEK"], List(s.Owner(), s.KEK.cert)...)},
		stored{"PK", globalVariable, attributes, stamp, List(s.Owner(), s.PK.cert)},
		stored{"SecureBootEnable", secureBootEnable, 3, make([]byte, 16), []byte{1}},
	)
	for i := from; i < end; i++ {
		out[i] = 0xff // flash that was erased
	}
	for _, v := range keep {
		if from, err = put(out, from, end, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// HTTPBoot gives a copy of an OVMF variable store whose firmware starts what lies at that address, over the first card
// that reaches it (UEFI 2.10, 24.7): the boot option is a URI alone, which the firmware completes.
func HTTPBoot(fd []byte, uri string) ([]byte, error) {
	le := binary.LittleEndian
	path := append(le.AppendUint16([]byte{3, 24}, uint16(4+len(uri))), uri...) // messaging device path, URI (10.3.4.24)
	path = append(path, 0x7f, 0xff, 4, 0)
	option := le.AppendUint16(le.AppendUint32(nil, 1), uint16(len(path))) // active (3.1.3)
	for _, u := range utf16.Encode([]rune("HTTP\x00")) {
		option = le.AppendUint16(option, u)
	}
	option = append(option, path...)
	out := bytes.Clone(fd)
	_, at, err := read(out)
	if err != nil {
		return nil, err
	}
	_, end, err := store(out)
	if err != nil {
		return nil, err
	}
	for _, v := range []stored{{"Boot0000", globalVariable, 7, make([]byte, 16), option}, {"BootOrder", globalVariable, 7, make([]byte, 16), []byte{0, 0}}} {
		if at, err = put(out, at, end, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// VendorLists reads db and KEK from a firmware's variable store: the ovmf package ships one with the common vendors' keys.
func VendorLists(fd []byte) (db, kek []byte, err error) {
	vars, _, err := read(fd)
	for _, v := range vars {
		switch v.name {
		case "db":
			db = v.data
		case "KEK":
			kek = v.data
		}
	}
	return db, kek, err
}
