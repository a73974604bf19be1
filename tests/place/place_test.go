package place

import (
	"net"
	"testing"
)

func TestPlace(t *testing.T) {
	one, two := Left(), Left()
	if one == two {
		t.Fatal("one address twice: ", one)
	}
	if c, err := net.Dial("tcp", one); err == nil {
		c.Close()
		t.Error("somebody listens at ", one)
	}
	for range 2 { // left and taken again
		ln := Take(t, one)
		c, err := net.Dial("tcp", one)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		ln.Close()
	}
}
