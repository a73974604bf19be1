package door

import (
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

func TestLength(t *testing.T) {
	if Open("kk") == nil || Open("kkkk") != nil {
		t.Fatal("wrong")
	}
}

func TestGood(t *testing.T) { mutation.Prove(t, mutation.Marked(t, "^TestLength$", "door.go")[:1]...) }

func TestBad(t *testing.T) { mutation.Prove(t, mutation.Marked(t, "^TestLength$", "door.go")...) }

func TestMoved(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "x", Test: "^TestLength$", File: "door.go", From: "nowhere"})
}

func TestNone(t *testing.T) {
	mutation.Prove(t, mutation.Check{Name: "x", Test: "^TestNobody$", File: "door.go", From: "n != 4", To: "n != 4 && !GONE"})
}

func TestOther(t *testing.T) {
	checks := mutation.Marked(t, "^TestLength$", "door.go")[:1]
	checks[0].Says = "it opens"
	mutation.Prove(t, checks...)
}

func TestStory(t *testing.T) {
	mutation.Each(t, nil, "TestLength", "", map[string]string{"a short key": "length", "a good key": ""})
}
