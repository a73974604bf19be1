// Package bmap answers: which blocks of an image hold something, and are they whole?
//
// The file is bmap-tools' format, version 2.0: ranges of blocks, each with its SHA-256, and a checksum of the file
// itself. Blocks outside the ranges are zeros in the image and need not be written to a disk that was discarded.
package bmap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// BlockSize is the unit of ranges, in bytes.
const BlockSize = 4096

const (
	maxFile   = 4 << 20
	maxRanges = 1 << 16
	maxImage  = 1 << 42
)

// Range is blocks First to Last, both inside, with the SHA-256 of their bytes.
type Range struct {
	First, Last int64
	Sum         [32]byte
}

// Offset and Size of the range, in bytes; an image's last block may be short.
func (r Range) Offset() int64 { return r.First * BlockSize }

// Map is what an image holds.
type Map struct {
	ImageSize int64
	Ranges    []Range // ascending, apart from each other
}

// Size is the range's length in bytes in this image.
func (m Map) Size(r Range) int64 { return min((r.Last+1)*BlockSize, m.ImageSize) - r.Offset() }

// Mapped is how many bytes the ranges hold together.
func (m Map) Mapped() (n int64) {
	for _, r := range m.Ranges {
		n += m.Size(r)
	}
	return n
}

// Make reads the blocks named by used (ascending) from the image and sums them. Neighbours become one range, of at most
// 16 MiB so that a fault is found early.
func Make(image io.ReaderAt, size int64, used []int64) (Map, error) {
	m := Map{ImageSize: size}
	for _, b := range used {
		n := len(m.Ranges)
		if n > 0 && m.Ranges[n-1].Last == b-1 && b-m.Ranges[n-1].First < 16<<20/BlockSize {
			m.Ranges[n-1].Last = b
			continue
		}
		m.Ranges = append(m.Ranges, Range{First: b, Last: b})
	}
	for i, r := range m.Ranges {
		h := sha256.New()
		if n, err := io.Copy(h, io.NewSectionReader(image, r.Offset(), m.Size(r))); err != nil || n != m.Size(r) {
			return m, fmt.Errorf("blocks %d to %d: %d bytes read: %w", r.First, r.Last, n, errors.Join(err))
		}
		m.Ranges[i].Sum = [32]byte(h.Sum(nil))
	}
	return m, m.check()
}

func (m Map) check() error {
	if m.ImageSize <= 0 || m.ImageSize > maxImage || len(m.Ranges) > maxRanges {
		return fmt.Errorf("an image of %d bytes in %d ranges: out of bounds", m.ImageSize, len(m.Ranges))
	}
	next := int64(0)
	for _, r := range m.Ranges {
		if r.First < next || r.Last < r.First || r.Offset() >= m.ImageSize || r.Last > (m.ImageSize-1)/BlockSize {
			return fmt.Errorf("range %d-%d is out of order or outside the image", r.First, r.Last)
		}
		next = r.Last + 1
	}
	return nil
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

// Encode gives the file.
func (m Map) Encode() []byte {
	var b bytes.Buffer
	blocks, mapped := (m.ImageSize+BlockSize-1)/BlockSize, int64(0)
	for _, r := range m.Ranges {
		mapped += r.Last - r.First + 1
	}
	fmt.Fprintf(&b, "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize> %d </ImageSize>\n    <BlockSize> %d </BlockSize>\n", m.ImageSize, BlockSize)
	fmt.Fprintf(&b, "    <BlocksCount> %d </BlocksCount>\n    <MappedBlocksCount> %d </MappedBlocksCount>\n", blocks, mapped)
	fmt.Fprintf(&b, "    <ChecksumType> sha256 </ChecksumType>\n    <BmapFileChecksum> %s </BmapFileChecksum>\n    <BlockMap>\n", zeros)
	for _, r := range m.Ranges {
		where := strconv.FormatInt(r.First, 10)
		if r.Last > r.First {
			where += "-" + strconv.FormatInt(r.Last, 10)
		}
		fmt.Fprintf(&b, "        <Range chksum=\"%x\"> %s </Range>\n", r.Sum, where)
	}
	b.WriteString("    </BlockMap>\n</bmap>\n")
	sum := sha256.Sum256(b.Bytes())
	return bytes.Replace(b.Bytes(), []byte(zeros), []byte(hex.EncodeToString(sum[:])), 1)
}

type file struct {
	Version   string `xml:"version,attr"`
	ImageSize string
	BlockSize string
	Type      string `xml:"ChecksumType"`
	Sum       string `xml:"BmapFileChecksum"`
	Ranges    []struct {
		Sum   string `xml:"chksum,attr"`
		Where string `xml:",chardata"`
	} `xml:"BlockMap>Range"`
}

// Decode reads a file of at most 4 MiB and checks its own checksum.
func Decode(b []byte) (Map, error) {
	var m Map
	if len(b) > maxFile {
		return m, fmt.Errorf("a block map of %d bytes: at most %d", len(b), maxFile)
	}
	var f file
	if err := xml.Unmarshal(b, &f); err != nil {
		return m, fmt.Errorf("block map: %w", err)
	}
	if f.Version != "2.0" || strings.TrimSpace(f.BlockSize) != strconv.Itoa(BlockSize) || strings.TrimSpace(f.Type) != "sha256" {
		return m, fmt.Errorf("block map of version %q, blocks of %q, sums %q: want 2.0, %d, sha256", f.Version, f.BlockSize, f.Type, BlockSize)
	}
	own := strings.TrimSpace(f.Sum)
	sum := sha256.Sum256(bytes.Replace(b, []byte(own), []byte(zeros), 1))
	if own != hex.EncodeToString(sum[:]) {
		return m, errors.New("the block map's own checksum is wrong")
	}
	var err error
	if m.ImageSize, err = strconv.ParseInt(strings.TrimSpace(f.ImageSize), 10, 64); err != nil {
		return m, fmt.Errorf("block map: %w", err)
	}
	for _, r := range f.Ranges {
		from, to, two := strings.Cut(strings.TrimSpace(r.Where), "-")
		if !two {
			to = from
		}
		sum, err := hex.DecodeString(r.Sum)
		first, err1 := strconv.ParseInt(from, 10, 64)
		last, err2 := strconv.ParseInt(to, 10, 64)
		if err := errors.Join(err, err1, err2); err != nil || len(sum) != 32 {
			return m, fmt.Errorf("block map: range %q with sum %q: %w", r.Where, r.Sum, errors.Join(err))
		}
		m.Ranges = append(m.Ranges, Range{First: first, Last: last, Sum: [32]byte(sum)})
	}
	return m, m.check()
}
