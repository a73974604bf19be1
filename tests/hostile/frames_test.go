package main

import (
	"bytes"
	"log/slog"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
)

// The relay reads the link's frames by their description alone: it must agree with the
// link, compressed or not.
func TestFrames(t *testing.T) {
	id := api.DeviceID{1, 2, 3}
	for _, word := range [][]byte{[]byte("word"), bytes.Repeat([]byte("word"), 200)} {
		list, body, err := openFrame(link.AckFrame(id, word))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v %v", list, err)
		}
		m := list[0]
		if m.typ() != downAck || deviceID(m.bytes(1)) != id || !bytes.Equal(m.bytes(2), word) || !bytes.Contains(body, word) {
			t.Errorf("read %v", m)
		}
		again, _, err := openFrame(packFrame(list...))
		if err != nil || len(again) != 1 || !bytes.Equal(again[0].bytes(2), word) {
			t.Errorf("packed and read: %v %v", again, err)
		}
	}
}

func TestMuteAndDrop(t *testing.T) {
	key, err := identity.LoadOrCreateKey(t.TempDir() + "/key")
	if err != nil {
		t.Fatal(err)
	}
	e := newEvil(&identity.Identity{Key: key}, &seen{}, slog.New(slog.DiscardHandler))
	id := api.DeviceID{1}
	ack, patch := newMessage(downAck, id[:], []byte("word")), newMessage(downPatch, []byte("manifest"))
	for act, want := range map[string][]int{"": {downAck, downPatch}, drop: {downAck}, mute: nil, alter: {downAck, downPatch}} {
		if err := e.Do([]string{act}); err != nil {
			t.Fatal(err)
		}
		out := e.goingDown(id, packFrame(ack, patch))
		if out == nil != (want == nil) {
			t.Fatalf("%s: %x", act, out)
		}
		if out == nil {
			continue
		}
		list, _, err := openFrame(out)
		if err != nil || len(list) != len(want) {
			t.Fatalf("%s: %v %v", act, list, err)
		}
		for i, m := range list {
			if m.typ() != want[i] {
				t.Errorf("%s: message %d is of type %d", act, i, m.typ())
			}
		}
		if altered := act == alter; altered == bytes.Equal(list[len(list)-1].bytes(1), []byte("manifest")) && act != drop {
			t.Errorf("%s: %q", act, list[len(list)-1].bytes(1))
		}
	}
	if e.Do([]string{"harm"}) == nil {
		t.Error("an unknown act is taken")
	}
}
