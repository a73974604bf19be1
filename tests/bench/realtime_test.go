package main

import "testing"

func TestLateFigures(t *testing.T) {
	list, err := lateFigures([]byte(`{"box":[{"median":10,"max":100},{"median":20,"max":50},{"median":30,"max":70}],"container":[{"median":11,"max":90},{"median":22,"max":91},{"median":12,"max":92}]}`))
	if err != nil || len(list) != 2 || list[0].Value != 12 || *list[0].Peer != 20 || *list[0].Ratio != 0.6 || list[1].Value != 91 || *list[1].Peer != 70 {
		t.Errorf("%+v %v", list, err)
	}
	for _, bad := range []string{``, `{}`, `{"box":[{"median":1,"max":2}]}`} {
		if list, err := lateFigures([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, list)
		}
	}
}
