package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"tributary.dev/tributary/pkg/release/frame"
	"tributary.dev/tributary/pkg/release/lz4k"
)

// Identity names the content of an installed release, so that a delta can say what it starts from. A box computes it
// from what it runs: root hash, and the digests of UKI and boot manager as they lie on its ESP.
func Identity(roothash string, uki, manager []byte) string {
	u, m := sha256.Sum256(uki), sha256.Sum256(manager)
	sum := sha256.Sum256([]byte("tributary content 1\n" + strings.ToLower(roothash) + "\n" + hex.EncodeToString(u[:]) + "\n" + hex.EncodeToString(m[:]) + "\n"))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// FindPacked looks for stretches of a UKI that Unfold unpacks: payloads of kernels (pkg/release/lz4k), and what the
// builder itself packed (pkg/release/frame). With again, only those that are packed again to the same bytes, as a
// description must list them; it takes half a minute of work.
func FindPacked(uki []byte, again bool) (list []Packed) {
	for at := 0; at < len(uki); {
		p, ok := packedAt(uki, at)
		if !ok {
			at += 4 // so lie the archives in an initramfs; sections of a PE file lie at multiples of 512
			continue
		}
		packed := uki[p.Offset:][:p.Size]
		at = int(p.Offset+p.Size+3) &^ 3
		plain, err := p.unpack(packed)
		if err != nil || len(plain) == 0 {
			continue
		}
		if p.Plain = int64(len(plain)); again {
			if same, err := p.pack(plain); err != nil || !bytes.Equal(same, packed) {
				continue
			}
		}
		list = append(list, p)
	}
	return list
}

func packedAt(uki []byte, at int) (p Packed, ok bool) {
	if at%512 == 0 && bytes.HasPrefix(uki[at:], []byte("MZ")) {
		if k, ok := lz4k.Find(uki[at:]); ok {
			return Packed{Offset: int64(at + k.Offset), Size: int64(k.Size)}, true
		}
	}
	if n, ok := frame.Size(uki[at:]); ok {
		return Packed{Offset: int64(at), Size: int64(n), Form: FormZstd}, true
	}
	return p, false
}

func (p Packed) unpack(packed []byte) ([]byte, error) {
	if p.Form == FormZstd {
		return frame.Decode(packed)
	}
	return lz4k.Decode(packed)
}

func (p Packed) pack(plain []byte) ([]byte, error) {
	if p.Form == FormZstd {
		return frame.Encode(plain)
	}
	packed, ok := lz4k.Fit(plain, int(p.Size))
	if !ok {
		return nil, errors.New("the kernel's payload has no room any more: it was packed by another encoder")
	}
	return packed, nil
}

// Unfold gives the UKI's part of the content: it with the packed stretches unpacked.
func Unfold(uki []byte, packed []Packed) ([]byte, error) {
	var out []byte
	at := int64(0)
	for _, p := range packed {
		out = append(out, uki[at:p.Offset]...)
		plain, err := p.unpack(uki[p.Offset : p.Offset+p.Size])
		if err != nil {
			return nil, err
		}
		if int64(len(plain)) != p.Plain {
			return nil, fmt.Errorf("a packed stretch has %d bytes, %d are said", len(plain), p.Plain)
		}
		out = append(out, plain...)
		at = p.Offset + p.Size
	}
	return append(out, uki[at:]...), nil
}

// Fold reads the UKI's part of the content and packs it again. The digest is checked.
func Fold(content io.Reader, d Description) ([]byte, error) {
	var out []byte
	take := func(n int64) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(content, b)
		return b, err
	}
	at := int64(0)
	for _, p := range d.Packed {
		between, err := take(p.Offset - at)
		if err != nil {
			return nil, err
		}
		plain, err := take(p.Plain)
		if err != nil {
			return nil, err
		}
		packed, err := p.pack(plain)
		if err != nil {
			return nil, err
		}
		if int64(len(packed)) != p.Size {
			return nil, fmt.Errorf("a stretch of %d bytes is packed to %d", p.Size, len(packed))
		}
		out = append(append(out, between...), packed...)
		at = p.Offset + p.Size
	}
	rest, err := take(d.UKI.Size - at)
	if err != nil {
		return nil, err
	}
	out = append(out, rest...)
	return out, d.UKI.Check(out)
}

// Check compares size and digest.
func (p Part) Check(b []byte) error {
	if sum := sha256.Sum256(b); int64(len(b)) != p.Size || hex.EncodeToString(sum[:]) != p.SHA256 {
		return fmt.Errorf("%d bytes that are not those of the release", len(b))
	}
	return nil
}

// PartOf describes bytes.
func PartOf(b []byte) Part {
	sum := sha256.Sum256(b)
	return Part{int64(len(b)), hex.EncodeToString(sum[:])}
}

// Pieces is several things read as one. It serves a delta's old content: unpacked UKI, boot manager, root.
type Pieces []Piece

// Piece is one of them.
type Piece struct {
	io.ReaderAt
	Size int64
}

// Size is that of all.
func (p Pieces) Size() (n int64) {
	for _, piece := range p {
		n += piece.Size
	}
	return n
}

// ReadAt implements io.ReaderAt.
func (p Pieces) ReadAt(b []byte, off int64) (n int, err error) {
	for _, piece := range p {
		if off >= piece.Size {
			off -= piece.Size
			continue
		}
		want := b[n:][:min(int64(len(b)-n), piece.Size-off)]
		got, err := piece.ReaderAt.ReadAt(want, off)
		n += got
		if got < len(want) {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		off = 0
	}
	return n, io.EOF
}
