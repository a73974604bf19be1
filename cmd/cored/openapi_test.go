package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write web/openapi.json anew")

// snapshot is the API that clients were made from: the console's types are generated from it.
const snapshot = "../../web/openapi.json"

// The API keeps what the committed description promises: no operation, parameter or property goes or changes its type, and
// nothing becomes required that was not. What is new may be added; `make openapi` notes it.
func TestTheAPIKeepsItsWord(t *testing.T) {
	r := start(t, t.TempDir())
	resp, err := r.http.Get(r.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var now, was map[string]any
	if err := json.Unmarshal(raw, &now); err != nil {
		t.Fatal(err)
	}
	if *update {
		now["info"].(map[string]any)["version"] = "1"
		b, err := json.MarshalIndent(now, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(snapshot, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if raw, err = os.ReadFile(snapshot); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &was); err != nil {
		t.Fatal(err)
	}
	for _, fault := range broken(was, now) {
		t.Errorf("%s: clients made from web/openapi.json break", fault)
	}
}

// broken lists what a client of one description meets otherwise in another.
func broken(was, now map[string]any) (faults []string) {
	for path, ops := range child(was, "paths") {
		for method, op := range ops.(map[string]any) {
			op, is := op.(map[string]any), child(child(child(now, "paths"), path), method)
			if op == nil {
				continue
			}
			where := strings.ToUpper(method) + " " + path
			if len(is) == 0 {
				faults = append(faults, where+" is gone")
				continue
			}
			faults = append(faults, brokenParameters(where, items(op["parameters"]), items(is["parameters"]))...)
			for status, answer := range child(op, "responses") {
				media := child(child(is, "responses"), status)
				if len(media) == 0 {
					faults = append(faults, where+" answers no "+status+" any more")
				}
				for kind, m := range child(answer.(map[string]any), "content") {
					faults = append(faults, brokenSchema(where+" "+status, child(m.(map[string]any), "schema"), child(child(child(media, "content"), kind), "schema"))...)
				}
			}
		}
	}
	for name, s := range child(child(was, "components"), "schemas") {
		faults = append(faults, brokenSchema(name, s.(map[string]any), child(child(child(now, "components"), "schemas"), name))...)
	}
	slices.Sort(faults)
	return faults
}

func brokenParameters(where string, was, now []map[string]any) (faults []string) {
	find := func(list []map[string]any, p map[string]any) map[string]any {
		for _, o := range list {
			if o["name"] == p["name"] && o["in"] == p["in"] {
				return o
			}
		}
		return nil
	}
	for _, p := range was {
		if find(now, p) == nil {
			faults = append(faults, fmt.Sprint(where, " takes no ", p["name"], " any more"))
		}
	}
	for _, p := range now {
		before := find(was, p)
		if p["required"] == true && (before == nil || before["required"] != true) {
			faults = append(faults, fmt.Sprint(where, " wants ", p["name"]))
		}
	}
	return faults
}

// brokenSchema holds what was said of a value beside what is said now.
func brokenSchema(where string, was, now map[string]any) (faults []string) {
	if len(was) == 0 {
		return nil
	}
	if len(now) == 0 {
		return []string{where + " is not described any more"}
	}
	if a, b := fmt.Sprint(was["type"], was["$ref"]), fmt.Sprint(now["type"], now["$ref"]); a != b {
		return []string{where + " was " + a + " and is " + b}
	}
	for name, p := range child(was, "properties") {
		is := child(child(now, "properties"), name)
		if _, there := child(now, "properties")[name]; !there {
			faults = append(faults, where+"."+name+" is gone")
			continue
		}
		if p, ok := p.(map[string]any); ok {
			faults = append(faults, brokenSchema(where+"."+name, p, is)...)
		}
	}
	if e := child(was, "items"); len(e) > 0 {
		faults = append(faults, brokenSchema(where+"[]", e, child(now, "items"))...)
	}
	for _, name := range words(now["required"]) {
		// What an answer always has, a client may rely upon; what a body must have, old clients may not send.
		if !slices.Contains(words(was["required"]), name) && child(was, "properties")[name] != nil && strings.HasSuffix(where, "Spec") {
			faults = append(faults, where+" wants "+name)
		}
	}
	return faults
}

func child(m map[string]any, name string) map[string]any {
	c, _ := m[name].(map[string]any)
	return c
}

func items(v any) (out []map[string]any) {
	list, _ := v.([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

func words(v any) (out []string) {
	list, _ := v.([]any)
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

// Each way of breaking a client is seen, and what is only new is none.
func TestBrokenIsSeen(t *testing.T) {
	base := `{"paths":{"/a":{"get":{"parameters":[{"name":"q","in":"query"}],"responses":{"200":{"content":{"application/json":{"schema":{"$ref":"#/x"}}}}}}}},
		"components":{"schemas":{"XSpec":{"type":"object","properties":{"n":{"type":"integer"},"l":{"type":"array","items":{"type":"string"}}}}}}}`
	for name, x := range map[string]struct{ from, to, want string }{
		"nothing": {"", "", ""}, "an operation": {`"/a":{"get"`, `"/a":{"put"`, "GET /a is gone"}, "a parameter": {`"name":"q"`, `"name":"r"`, "takes no q"},
		"a parameter that is wanted": {`"in":"query"}`, `"in":"query","required":true}`, "wants q"}, "an answer": {`"$ref":"#/x"`, `"$ref":"#/y"`, "was"},
		"a property": {`"n":{`, `"m":{`, "XSpec.n is gone"}, "a type": {`"integer"`, `"string"`, "XSpec.n was"}, "a list's type": {`"items":{"type":"string"`, `"items":{"type":"object"`, "XSpec.l[] was"},
		"a property that is wanted": {`"type":"object",`, `"type":"object","required":["n"],`, "wants n"}, "something new": {`"n":{`, `"new":{"type":"string"},"n":{`, ""},
	} {
		var was, now map[string]any
		if err := json.Unmarshal([]byte(base), &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(strings.Replace(base, x.from, x.to, 1)), &now); err != nil {
			t.Fatal(name, err)
		}
		if got := strings.Join(broken(was, now), "; "); x.want == "" && got != "" || !strings.Contains(got, x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}
