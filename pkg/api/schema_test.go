package api

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

func compile(t *testing.T, name string, schema []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What Decode accepts, the schemas accept.
func TestSchemaAccepts(t *testing.T) {
	combined, err := CombinedSchema()
	if err != nil {
		t.Fatal(err)
	}
	all := compile(t, "tributary.json", combined)
	single := map[string]*jsonschema.Schema{}
	for _, k := range Kinds {
		b, err := Schema(k.Name)
		if err != nil {
			t.Fatal(err)
		}
		single[k.Name] = compile(t, k.Name+".json", b)
	}
	rapid.Check(t, func(t *rapid.T) {
		o := drawObject(t)
		b, _ := json.Marshal(o)
		doc, _ := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		for name, s := range map[string]*jsonschema.Schema{"combined": all, o.Kind: single[o.Kind]} {
			if err := s.Validate(doc); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, b)
			}
		}
	})
	for _, bad := range []string{
		`{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"s"},"spec":{"adress":"x"}}`,
		`{"apiVersion":"tributary/v1","kind":"Nope","metadata":{"name":"s"}}`,
		`{"apiVersion":"tributary/v1","kind":"Site","metadata":{"name":"S"}}`,
		`{"apiVersion":"tributary/v1","kind":"Fleet","metadata":{"name":"s"},"spec":{"selector":{},"settings":{"meterInterval":90}}}`,
	} {
		doc, _ := jsonschema.UnmarshalJSON(strings.NewReader(bad))
		if all.Validate(doc) == nil {
			t.Errorf("accepted %s", bad)
		}
	}
	if !strings.Contains(string(combined), "How often a usage record is cut") && !strings.Contains(string(combined), "how often a usage record is cut") {
		t.Error("the schema carries no comments")
	}
}
