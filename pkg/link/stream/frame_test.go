package stream

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

func TestFramesComeBackAsSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var wire []byte
		sent := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Frame {
			return Frame{FrameType(rapid.Byte().Draw(t, "type")), rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "payload")}
		}), 0, 20).Draw(t, "frames")
		for _, f := range sent {
			wire = AppendFrame(wire, f)
		}
		r := bytes.NewReader(wire)
		for i, want := range sent {
			got, err := ReadFrame(r)
			if err != nil || got.Type != want.Type || !bytes.Equal(got.Payload, want.Payload) {
				t.Fatalf("frame %d: got %v, %v; want %v", i, got, err, want)
			}
		}
		if _, err := ReadFrame(r); err != io.EOF {
			t.Fatalf("after the last frame: %v, not EOF", err)
		}
	})
}

func TestFrameRefusals(t *testing.T) {
	if _, err := ReadFrame(bytes.NewReader([]byte{1, 0xff, 0xff, 0xff})); err == nil {
		t.Error("a frame of 16 MiB was taken")
	}
	if _, err := ReadFrame(bytes.NewReader([]byte{1, 0, 0, 9, 1})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a torn frame: %v", err)
	}
	if n := len(AppendFrame(nil, Frame{Stdout, make([]byte, MaxPayload+1)})); n != MaxPayload+headerSize {
		t.Errorf("an oversize payload became %d bytes", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendFrame(nil, Frame{Stdin, []byte("ls\n")}))
	f.Add(AppendFrame(AppendFrame(nil, Frame{Ping, nil}), Frame{Exit, encodeExit(-1)}))
	f.Add(AppendFrame(nil, Frame{Resize, Size{80, 24}.encode()}))
	f.Add([]byte{7, 0, 0, 2, '{', '}'})
	f.Add([]byte{1, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bytes.NewReader(wire)
		for {
			frame, err := ReadFrame(r)
			if err != nil {
				return
			}
			if len(frame.Payload) > MaxPayload {
				t.Fatal("over the bound")
			}
			again, err := ReadFrame(bytes.NewReader(AppendFrame(nil, frame)))
			if err != nil || again.Type != frame.Type || !bytes.Equal(again.Payload, frame.Payload) {
				t.Fatalf("does not come back: %v %v", again, err)
			}
			_, _, _ = frame.ending()
			_, _ = decodeSize(frame.Payload)
		}
	})
}
