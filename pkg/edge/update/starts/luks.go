package starts

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// checksum holds a header with its JSON area against its SHA-256 at byte 448.
func checksum(r io.ReaderAt, head []byte, at int64) error {
	size := binary.BigEndian.Uint64(head[8:])
	if size < 16<<10 || size > 4<<20 || binary.BigEndian.Uint16(head[6:]) != 2 {
		return fmt.Errorf("a LUKS header of %d bytes", size)
	}
	b := make([]byte, size)
	if _, err := r.ReadAt(b, at); err != nil {
		return err
	}
	want := bytes.Clone(b[448 : 448+sha256.Size])
	clear(b[448 : 448+64])
	if got := sha256.Sum256(b); !bytes.Equal(got[:], want) {
		return errors.New("the LUKS header's checksum is wrong")
	}
	return nil
}
