package cli

import (
	"encoding/json"

	"tributary.dev/tributary/pkg/api"
)

// readSpec and readStatus read the parts of an object; absent ones stay zero.
func readSpec(o *api.Object, spec any) error { return readPart(o, o.Spec, spec, "spec") }

func readStatus(o *api.Object, status any) error { return readPart(o, o.Status, status, "status") }

func readPart(o *api.Object, raw json.RawMessage, to any, part string) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return &api.Error{Code: api.Internal, Message: "the " + part + " of " + o.Kind + " " + o.Metadata.Name + " cannot be read", Remedy: "compare `edgectl version` of both sides", Err: err}
	}
	return nil
}

func setSpec(o *api.Object, spec any) {
	b, err := json.Marshal(spec)
	if err != nil {
		return // our own types always have a JSON form
	}
	o.Spec = b
}
