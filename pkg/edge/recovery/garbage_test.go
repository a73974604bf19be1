package recovery

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// noise is what a serial line may bring: half an escape code, the bytes of another speed, a
// file that somebody pasted.
var noise = []string{"\r", "2\r1\r\r", "\x1b", "\x1b[", "\x1b[999;999R\x1b[<0;1;1M", "\x00\xff\x80\x1bO", "\x1b]0;title\x07", "\x1bP" + string(bytes.Repeat([]byte("x"), 5000)),
	"12\r3\rerase field-1\r", "s\rp\r\x03\x04", string(bytes.Repeat([]byte{0x55, 0xaa}, 600)), "\x1b[200~paste\r\r\x1b[201~", "é\xe2\x82"}

// FuzzPlain: whatever comes over the line, the menus go on until it ends, and nothing is done
// that was not confirmed.
func FuzzPlain(f *testing.F) {
	for _, n := range noise {
		f.Add([]byte(n), 80, 24)
	}
	f.Fuzz(func(t *testing.T, in []byte, width, height int) {
		box := &testBox{facts: wellBox()}
		var out bytes.Buffer
		err := RunPlain(t.Context(), PlainConfig{In: bytes.NewReader(in[:min(len(in), 4096)]), Out: &out, Width: width % 300, Height: height % 100, Draw: true, Echo: true}, box)
		if err != nil && !errors.Is(err, ErrDraw) {
			t.Fatal(err)
		}
		for _, did := range box.did {
			if strings.HasPrefix(did, "factory-reset") && !bytes.Contains(in, []byte("erase field-1")) {
				t.Fatalf("%q has reset the box", in)
			}
		}
		if bytes.ContainsRune(out.Bytes(), 0x1b) {
			t.Fatalf("an escape code came back: %q", out.Bytes())
		}
	})
}

// TestGarbageDrawn: the drawn screen outlives it too, and can be left by q afterwards.
func TestGarbageDrawn(t *testing.T) {
	for _, n := range noise {
		in, typed := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		ended := make(chan error, 1)
		go func() {
			ended <- RunScreen(ctx, DrawConfig{In: in, Out: io.Discard, Width: 80, Height: 24}, &testBox{facts: wellBox()})
		}()
		leave := "\x1b"
		if _, err := io.WriteString(typed, n); err != nil {
			t.Fatal(err)
		}
		var err error
		for over := false; !over; {
			select {
			case err = <-ended:
				over = true
			case <-time.After(100 * time.Millisecond): // what a lone escape waits for
				key := leave
				go func() { _, _ = io.WriteString(typed, key) }() // until nobody reads any more
				leave = map[string]string{"\x1b": "q", "q": "\r", "\r": "\x1b"}[leave]
			}
		}
		if err != nil && !errors.Is(err, ErrPlain) || ctx.Err() != nil {
			t.Errorf("%q: %v", n, err)
		}
		cancel()
		_ = in.Close()
	}
}
