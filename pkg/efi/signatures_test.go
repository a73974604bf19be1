package efi

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// list is one EFI_SIGNATURE_LIST of entries of the same length.
func list(entries ...[]byte) []byte {
	le := binary.LittleEndian
	body := bytes.Join(entries, nil)
	b := le.AppendUint32(certX509[:len(certX509):len(certX509)], uint32(28+len(body)))
	b = le.AppendUint32(le.AppendUint32(b, 0), uint32(len(entries[0])))
	return append(b, body...)
}

func entry(cert string) []byte { return append(bytes.Repeat([]byte{9}, 16), cert...) }

func entriesOf(t interface{ Fatal(...any) }, b []byte) (out []string) {
	all, err := Signatures(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		out = append(out, string(s.Entry))
	}
	return out
}

// TestAppended: all of both is there, in order and once; and once more is the same.
func TestAppended(t *testing.T) {
	lists := rapid.Custom(func(t *rapid.T) []byte {
		var b []byte
		for range rapid.IntRange(0, 3).Draw(t, "lists") {
			var entries [][]byte
			for range rapid.IntRange(1, 3).Draw(t, "entries") {
				entries = append(entries, entry(rapid.SampledFrom([]string{"one", "two", "six", "ten"}).Draw(t, "cert")))
			}
			slices.SortFunc(entries, bytes.Compare)
			b = append(b, list(slices.CompactFunc(entries, bytes.Equal)...)...)
		}
		return b
	})
	rapid.Check(t, func(t *rapid.T) {
		have, more := lists.Draw(t, "have"), lists.Draw(t, "more")
		got, err := Appended(have, more)
		if err != nil || !bytes.HasPrefix(got, have) {
			t.Fatal(got, err)
		}
		want, now := append(entriesOf(t, have), entriesOf(t, more)...), entriesOf(t, got)
		for _, e := range want {
			if !slices.Contains(now, e) {
				t.Fatalf("%q is lost", e)
			}
		}
		for _, e := range now[len(entriesOf(t, have)):] {
			if slices.Contains(entriesOf(t, have), e) {
				t.Fatalf("%q was there", e)
			}
		}
		if again, err := Appended(got, more); err != nil || !bytes.Equal(again, got) {
			t.Fatal("a second time is another", err)
		}
	})
}

func TestAppends(t *testing.T) {
	data := append(make([]byte, 16), 28, 0, 0, 0)
	data = append(append(data, make([]byte, 24)...), list(entry("one"))...)
	want := []Append{{Name: "append-db-2", Variable: "db", Data: data}}
	file, err := EncodeAppends(want)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := EncodeAppends(nil)
	if err != nil || len(empty) != len(file) {
		t.Errorf("a file of %d bytes, and one of %d: %v", len(file), len(empty), err)
	}
	got, err := DecodeAppends(file)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if content, err := got[0].Content(); err != nil || !bytes.Equal(content, list(entry("one"))) {
		t.Errorf("%x %v", content, err)
	}
	for _, bad := range []Append{{Variable: "PK", Data: data}, {Variable: "db", Data: data[:20]}, {Variable: "db"}} {
		if _, err := bad.Content(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := (Append{Variable: "PK", Data: data}).Write(Memory{}); err == nil {
		t.Error("PK is written")
	}
	if _, err := EncodeAppends([]Append{{Data: make([]byte, 1<<20)}}); err == nil {
		t.Error("no bound")
	}
}

func FuzzSignatures(f *testing.F) {
	f.Add(list(entry("one"), entry("two")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Signatures(b); err != nil {
			return
		}
		if got, err := Appended(nil, b); err != nil || len(got) > len(b) {
			t.Fatal(len(got), err)
		}
	})
}

func FuzzSignedBy(f *testing.F) {
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := SignedBy(bytes.NewReader(b), int64(len(b)))
		if err == nil && len(table) > len(b) {
			t.Fatal(len(table))
		}
	})
}

func FuzzDecodeAppends(f *testing.F) {
	f.Add([]byte(`[{"name":"x","variable":"db","data":""}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeAppends(b)
		for _, a := range list {
			if err == nil {
				_, _ = a.Content()
			}
		}
	})
}

func FuzzSignedIn(f *testing.F) {
	f.Add(append(append(make([]byte, 16), 24, 0, 0, 0), make([]byte, 20)...), list(entry("x")))
	f.Add(append(append(make([]byte, 16), 30, 0, 0, 0), append(make([]byte, 20), 0x30, 4, 2, 1, 1, 0x31, 0)...), list(entry("x")))
	f.Fuzz(func(t *testing.T, data, trusted []byte) {
		if ok, err := (Append{Name: "f", Variable: "db", Data: data}).SignedIn(trusted); ok && err == nil {
			t.Fatal("nobody signed it")
		}
	})
}
