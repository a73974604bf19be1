// Package luks answers: how is a LUKS2 volume opened by its key file, without cryptsetup?
//
// It reads the header (LUKS2 On-Disk Format Specification 1.1.2), takes the volume key out
// of a key slot, checks it by its digest, and gives the kernel's table line. It knows what
// this project's volumes are made of: PBKDF2, AES-XTS, one crypt segment. Volumes are made
// and changed by cryptsetup, and whatever this package does not understand is for
// cryptsetup to open: a torn header, above all, which that mends by the other copy.
package luks

import (
	"bytes"
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"sort"
	"strconv"

	"golang.org/x/crypto/xts"

	"tributary.dev/tributary/pkg/edge/boot/dm"
)

const (
	binSize = 4096
	// maxHeader is the largest that LUKS2 has: 4 MiB, the binary part included.
	maxHeader = 4 << 20
	sector    = 512

	maxIterations = 1_000_000
	maxStripes    = 4000
	maxKey        = 64
)

// ErrKey: no key slot opens by this key.
var ErrKey = errors.New("luks: no key slot opens by this key")

// Header is what opening takes of a LUKS2 header.
type Header struct {
	Label    string
	UUID     string
	meta     metadata
	sequence uint64
}

type metadata struct {
	Keyslots map[string]keyslot         `json:"keyslots"`
	Tokens   map[string]json.RawMessage `json:"tokens"`
	Segments map[string]segment         `json:"segments"`
	Digests  map[string]digest          `json:"digests"`
}

type keyslot struct {
	Type    string `json:"type"`
	KeySize int    `json:"key_size"`
	AF      struct {
		Type    string `json:"type"`
		Stripes int    `json:"stripes"`
		Hash    string `json:"hash"`
	} `json:"af"`
	Area struct {
		Type       string `json:"type"`
		Offset     string `json:"offset"`
		Size       string `json:"size"`
		Encryption string `json:"encryption"`
		KeySize    int    `json:"key_size"`
	} `json:"area"`
	KDF struct {
		Type       string `json:"type"`
		Hash       string `json:"hash"`
		Iterations int    `json:"iterations"`
		Salt       []byte `json:"salt"`
	} `json:"kdf"`
}

type segment struct {
	Type       string          `json:"type"`
	Offset     string          `json:"offset"`
	Size       string          `json:"size"`
	Tweak      string          `json:"iv_tweak"`
	Encryption string          `json:"encryption"`
	SectorSize int             `json:"sector_size"`
	Integrity  json.RawMessage `json:"integrity"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations int      `json:"iterations"`
	Salt       []byte   `json:"salt"`
	Digest     []byte   `json:"digest"`
}

// Read reads the newer of the two headers. Both must be whole: else cryptsetup is to look.
func Read(r io.ReaderAt) (*Header, error) {
	first, size, err := readAt(r, 0, "LUKS\xba\xbe")
	if err != nil {
		return nil, err
	}
	second, _, err := readAt(r, size, "SKUL\xba\xbe")
	if err != nil {
		return nil, fmt.Errorf("second header: %w", err)
	}
	if second.sequence > first.sequence {
		return second, nil
	}
	return first, nil
}

func readAt(r io.ReaderAt, at int64, magic string) (*Header, int64, error) {
	b := make([]byte, binSize)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, 0, err
	}
	be := binary.BigEndian
	if string(b[:6]) != magic || be.Uint16(b[6:]) != 2 {
		return nil, 0, errors.New("luks: no LUKS2 header")
	}
	size := be.Uint64(b[8:])
	if size < 2*binSize || size > maxHeader || size%binSize != 0 || be.Uint64(b[256:]) != uint64(at) {
		return nil, 0, fmt.Errorf("luks: a header of %d bytes at %d", size, at)
	}
	if text(b[72:104]) != "sha256" {
		return nil, 0, fmt.Errorf("luks: header checksum %q", text(b[72:104]))
	}
	whole := make([]byte, size)
	if _, err := r.ReadAt(whole, at); err != nil {
		return nil, 0, err
	}
	clear(whole[448:512])
	if sum := sha256.Sum256(whole); !bytes.Equal(sum[:], b[448:480]) {
		return nil, 0, errors.New("luks: the header's checksum is wrong")
	}
	h := &Header{Label: text(b[24:72]), UUID: text(b[168:208]), sequence: be.Uint64(b[16:])}
	area, _, _ := bytes.Cut(whole[binSize:], []byte{0})
	if err := json.Unmarshal(area, &h.meta); err != nil {
		return nil, 0, fmt.Errorf("luks: %w", err)
	}
	return h, int64(size), nil
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// Tokens are the tokens' JSON objects, by their numbers' order.
func (h *Header) Tokens() (out []json.RawMessage) {
	for _, id := range numbers(h.meta.Tokens) {
		out = append(out, h.meta.Tokens[id])
	}
	return out
}

// TokenIDs are the numbers of Tokens, in the same order.
func (h *Header) TokenIDs() []string { return numbers(h.meta.Tokens) }

// Slots are the numbers of the key slots that are in use.
func (h *Header) Slots() []string { return numbers(h.meta.Keyslots) }

func numbers[T any](m map[string]T) []string {
	var out []string
	for id := range m {
		out = append(out, id)
	}
	sort.Slice(out, func(i, j int) bool { return len(out[i]) < len(out[j]) || len(out[i]) == len(out[j]) && out[i] < out[j] })
	return out
}

// Open gives the kernel's table for the volume on node, which r reads and which has size
// bytes, opened by key. The table holds the volume's key.
func (h *Header) Open(r io.ReaderAt, node string, size int64, key []byte) (dm.Target, error) {
	if len(h.meta.Segments) != 1 {
		return dm.Target{}, fmt.Errorf("luks: %d segments", len(h.meta.Segments))
	}
	s, ok := h.meta.Segments["0"]
	if !ok || s.Type != "crypt" || s.Size != "dynamic" || s.Encryption != "aes-xts-plain64" || len(s.Integrity) > 0 {
		return dm.Target{}, fmt.Errorf("luks: segment %s %s %s", s.Type, s.Size, s.Encryption)
	}
	offset, err1 := strconv.ParseInt(s.Offset, 10, 64)
	tweak, err2 := strconv.ParseUint(s.Tweak, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return dm.Target{}, fmt.Errorf("luks: %w", err)
	}
	if s.SectorSize != 512 && s.SectorSize != 4096 || offset < 2*binSize || offset%4096 != 0 || size-offset < int64(s.SectorSize) {
		return dm.Target{}, fmt.Errorf("luks: a segment from %d of %d in sectors of %d", offset, size, s.SectorSize)
	}
	volume, err := h.volumeKey(r, key)
	if err != nil {
		return dm.Target{}, err
	}
	length := (size - offset) / int64(s.SectorSize) * int64(s.SectorSize)
	params := fmt.Sprintf("%s %s %d %s %d", s.Encryption, hex.EncodeToString(volume), tweak, node, offset/sector)
	if s.SectorSize != sector {
		params += fmt.Sprintf(" 1 sector_size:%d", s.SectorSize)
	}
	return dm.Target{Length: uint64(length / sector), Type: "crypt", Params: params, Secret: true}, nil
}

func (h *Header) volumeKey(r io.ReaderAt, key []byte) ([]byte, error) {
	faults := []error{ErrKey}
	for _, id := range numbers(h.meta.Keyslots) {
		volume, err := h.meta.Keyslots[id].open(r, key)
		if err == nil {
			err = h.check(id, volume)
		}
		if err == nil {
			return volume, nil
		}
		faults = append(faults, fmt.Errorf("slot %s: %w", id, err))
	}
	return nil, errors.Join(faults...)
}

// open decrypts the slot's area and merges its stripes (section 3.2.2 and LUKS1's
// anti-forensic splitter).
func (k keyslot) open(r io.ReaderAt, key []byte) ([]byte, error) {
	switch {
	case k.Type != "luks2" || k.AF.Type != "luks1" || k.Area.Type != "raw" || k.Area.Encryption != "aes-xts-plain64" || k.KDF.Type != "pbkdf2":
		return nil, fmt.Errorf("%s, %s, %s, %s: not known here", k.Type, k.AF.Type, k.Area.Encryption, k.KDF.Type)
	case k.KeySize < 16 || k.KeySize > maxKey || k.Area.KeySize != 32 && k.Area.KeySize != 64 || k.AF.Stripes < 1 || k.AF.Stripes > maxStripes || k.KDF.Iterations < 1 || k.KDF.Iterations > maxIterations:
		return nil, errors.New("out of bounds")
	}
	kdf, split := hashes[k.KDF.Hash], hashes[k.AF.Hash]
	if kdf == nil || split == nil {
		return nil, fmt.Errorf("hash %q, %q", k.KDF.Hash, k.AF.Hash)
	}
	offset, err := strconv.ParseInt(k.Area.Offset, 10, 64)
	if err != nil || offset < 0 {
		return nil, fmt.Errorf("area at %q", k.Area.Offset)
	}
	derived, err := pbkdf2.Key(kdf, string(key), k.KDF.Salt, k.KDF.Iterations, k.Area.KeySize)
	if err != nil {
		return nil, err
	}
	cipher, err := xts.NewCipher(aes.NewCipher, derived)
	if err != nil {
		return nil, err
	}
	area := make([]byte, (k.KeySize*k.AF.Stripes+sector-1)/sector*sector)
	if _, err := r.ReadAt(area, offset); err != nil {
		return nil, err
	}
	for i := 0; i < len(area); i += sector {
		cipher.Decrypt(area[i:i+sector], area[i:i+sector], uint64(i/sector))
	}
	return merge(area, k.KeySize, k.AF.Stripes, split), nil
}

var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

func merge(material []byte, size, stripes int, h func() hash.Hash) []byte {
	d := make([]byte, size)
	for i := range stripes {
		subtle.XORBytes(d, d, material[i*size:(i+1)*size])
		if i < stripes-1 {
			diffuse(d, h())
		}
	}
	return d
}

// diffuse replaces each piece of a digest's size by the digest of its number and itself.
func diffuse(d []byte, h hash.Hash) {
	for i := 0; i*h.Size() < len(d); i++ {
		piece := d[i*h.Size() : min((i+1)*h.Size(), len(d))]
		h.Reset()
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(i))) // a hash takes all
		_, _ = h.Write(piece)
		copy(piece, h.Sum(nil))
	}
}

// check compares the key with the digest that covers both the slot and the segment.
func (h *Header) check(slot string, volume []byte) error {
	for _, d := range h.meta.Digests {
		if !has(d.Keyslots, slot) || !has(d.Segments, "0") {
			continue
		}
		kdf := hashes[d.Hash]
		if d.Type != "pbkdf2" || kdf == nil || d.Iterations < 1 || d.Iterations > maxIterations || len(d.Digest) < 16 || len(d.Digest) > 64 {
			return fmt.Errorf("digest %s %s", d.Type, d.Hash)
		}
		sum, err := pbkdf2.Key(kdf, string(volume), d.Salt, d.Iterations, len(d.Digest))
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(sum, d.Digest) != 1 {
			return errors.New("another key")
		}
		return nil
	}
	return errors.New("no digest")
}

func has(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}
