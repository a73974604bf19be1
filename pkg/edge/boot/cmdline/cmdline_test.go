package cmdline

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	l := Parse("console=tty0 console=ttyS0,115200 quiet a=\"b c\" x=y=z\n")
	if l["console"] != "ttyS0,115200" || !l.Has("quiet") || l["a"] != "b c" || l["x"] != "y=z" || l.Has("b") {
		t.Errorf("%v", l)
	}
	if got := Parse("t=5 u=0 v=x w=99").Seconds; got("t", 1, time.Minute) != 5*time.Second || got("u", 7, time.Minute) != 7 || got("v", 7, time.Minute) != 7 || got("w", 7, time.Minute) != 7 {
		t.Error("seconds out of bounds")
	}
}

func TestRootHash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
		got, err := Parse(fmt.Sprintf("ro roothash=%x quiet", want)).RootHash()
		if err != nil || got != want {
			t.Fatalf("%x, %v", got, err)
		}
	})
	for _, text := range []string{"", "roothash=", "roothash=abcd", "roothash=" + fmt.Sprintf("%066d", 0), "roothash=zz"} {
		if _, err := Parse(text).RootHash(); err == nil {
			t.Errorf("%q is not refused", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a=b c=\"d e\" roothash=00")
	f.Fuzz(func(t *testing.T, text string) {
		l := Parse(text)
		_, _ = l.RootHash()
		if _, ok := l[" "]; ok {
			t.Fatal("a blank is a key")
		}
	})
}
