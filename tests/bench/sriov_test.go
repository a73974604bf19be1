package main

import "testing"

func TestFunctionFigures(t *testing.T) {
	got, err := functionFigures([]byte(`{"bridge":{"mbit":[10,30,20],"us":[400,500,600]},"function":{"mbit":[40,50,30],"us":[100,300,250]}}`))
	if err != nil || len(got) != 2 || got[0].Value != 250 || *got[0].Ratio != 0.5 || got[1].Value != 40 || *got[1].Ratio != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{``, `{}`, `{"bridge":{"mbit":[1],"us":[1]},"function":{"mbit":[1],"us":[1,2]}}`} {
		if got, err := functionFigures([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
