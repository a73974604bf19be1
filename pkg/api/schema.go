package api

import (
	_ "embed"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

// SchemaBase is the identifier under which the schemas refer to each other. Nothing is
// fetched from there.
const SchemaBase = "https://tributary.dev/schemas/v1/"

const schemaDraft = "https://json-schema.org/draft/2020-12/schema"

// The comments of these files are the descriptions that editors show.
var (
	//go:embed kinds.go
	kindsSource string
	//go:embed api.go
	apiSource string
	//go:embed flow.go
	flowSource string
	//go:embed billing.go
	billingSource string
	//go:embed incident.go
	incidentSource string
)

// Schema returns the JSON Schema (draft 2020-12) of one kind as people write it, for
// editors: unknown fields are refused, as Decode does. The status is left open.
func Schema(kind string) ([]byte, error) {
	k, err := LookupKind(kind)
	if err != nil {
		return nil, err
	}
	s := kindSchema(k)
	s["$schema"], s["$id"] = schemaDraft, SchemaBase+strings.ToLower(k.Name)+".json"
	return json.MarshalIndent(s, "", "  ")
}

// CombinedSchema returns one JSON Schema for documents of any kind.
func CombinedSchema() ([]byte, error) {
	var choice []any
	defs := map[string]any{}
	for i := range Kinds {
		k := &Kinds[i]
		defs[k.Name] = kindSchema(k)
		choice = append(choice, map[string]any{
			"if":   map[string]any{"properties": map[string]any{"kind": map[string]any{"const": k.Name}}},
			"then": map[string]any{"$ref": "#/$defs/" + k.Name},
		})
	}
	// if/then instead of oneOf: editors then complain about the field, not about
	// "none of eight schemas".
	return json.MarshalIndent(map[string]any{
		"$schema": schemaDraft, "$id": SchemaBase + "tributary.json", "title": "Tributary objects",
		"type": "object", "required": []string{"apiVersion", "kind", "metadata"},
		"properties": map[string]any{"kind": map[string]any{"enum": KindNames()}},
		"allOf":      choice, "$defs": defs,
	}, "", "  ")
}

func kindSchema(k *Kind) map[string]any {
	object := func(t any) map[string]any { return reflectSchema(reflect.TypeOf(t).Elem()) }
	meta := object(new(Meta))
	if p, ok := meta["properties"].(map[string]any); ok {
		p["name"].(map[string]any)["pattern"] = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
	}
	return map[string]any{
		"title": k.Name, "description": k.Doc, "type": "object", "additionalProperties": false,
		"required": []string{"apiVersion", "kind", "metadata"},
		"properties": map[string]any{
			"apiVersion": map[string]any{"const": Version},
			"kind":       map[string]any{"const": k.Name},
			"metadata":   meta,
			"spec":       object(k.NewSpec()),
			"status":     map[string]any{"type": "object", "description": "Written by the core; ignored on the way in."},
		},
	}
}

// reflectSchema describes a type inline, without references, so that a kind's schema
// stands alone.
func reflectSchema(t reflect.Type) map[string]any {
	r := &jsonschema.Reflector{Anonymous: true, DoNotReference: true, ExpandedStruct: true, CommentMap: comments(), Mapper: mapType}
	b, err := json.Marshal(r.ReflectFromType(t))
	var m map[string]any
	if err != nil || json.Unmarshal(b, &m) != nil {
		return map[string]any{"type": "object"} // unreachable: the types are ours
	}
	delete(m, "$schema")
	delete(m, "$id")
	return m
}

func mapType(t reflect.Type) *jsonschema.Schema {
	if t == durationType {
		return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`, Description: "A duration such as 90s, 15m or 1h30m."}
	}
	return nil
}

// comments maps types and fields to their doc comments, keyed as jsonschema does.
func comments() map[string]string {
	const pkg = "tributary.dev/tributary/pkg/api."
	m := map[string]string{}
	for _, source := range []string{kindsSource, apiSource, flowSource, billingSource, incidentSource} {
		file, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
		if err != nil {
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						if text := strings.Join(strings.Fields(f.Doc.Text()), " "); text != "" {
							m[pkg+spec.Name.Name+"."+name.Name] = text
						}
					}
				}
			}
			return false
		})
	}
	return m
}
