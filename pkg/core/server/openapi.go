package server

import (
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/billing"
)

func (s *Server) apiConfig() huma.Config {
	c := huma.DefaultConfig("Tributary", s.cfg.Version)
	c.Info.Description = "Objects, records and streams of a Tributary core."
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "/openapi", "", ""
	c.CreateHooks = nil // no $schema links in answers: objects are read back as they were sent
	c.Transformers = []huma.Transformer{translate}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "A token of `cored token create`."}}
	c.Security = []map[string][]string{{"token": {}}}
	registry := c.Components.Schemas
	registry.RegisterTypeAlias(reflect.TypeFor[api.Duration](), reflect.TypeFor[string]())
	registry.RegisterTypeAlias(reflect.TypeFor[billing.Money](), reflect.TypeFor[string]())
	return c
}

// define puts a schema under a name and returns a reference to it.
func (s *Server) define(name string, schema *huma.Schema) *huma.Schema {
	s.api.OpenAPI().Components.Schemas.Map()[name] = schema
	return &huma.Schema{Ref: "#/components/schemas/" + name}
}

func (s *Server) schemaOf(v any) *huma.Schema {
	return huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, reflect.TypeOf(v).Elem())
}

// objectSchema describes one kind: the envelope with its spec and status.
func (s *Server) objectSchema(k *api.Kind) *huma.Schema {
	o := &huma.Schema{Type: huma.TypeObject, Description: k.Doc, Required: []string{"apiVersion", "kind", "metadata"}, AdditionalProperties: false,
		Properties: map[string]*huma.Schema{
			"apiVersion": {Type: huma.TypeString, Enum: []any{api.Version}},
			"kind":       {Type: huma.TypeString, Enum: []any{k.Name}},
			"metadata":   s.schemaOf(new(api.Meta)),
			"spec":       s.schemaOf(k.NewSpec()),
		}}
	if k.NewStatus != nil {
		o.Properties["status"] = s.schemaOf(k.NewStatus())
	}
	return s.define(k.Name, o)
}

func (s *Server) listSchema(k *api.Kind) *huma.Schema {
	return s.define(k.Name+"List", &huma.Schema{Type: huma.TypeObject, Required: []string{"items", "revision"}, Properties: map[string]*huma.Schema{
		"items":    {Type: huma.TypeArray, Items: &huma.Schema{Ref: "#/components/schemas/" + k.Name}},
		"next":     {Type: huma.TypeString, Description: "Cursor of the next page; absent on the last."},
		"revision": {Type: huma.TypeInteger, Description: "Watching from it misses nothing."},
	}})
}

// responses describes the good answer and the one shape of every bad one.
func (s *Server) responses(status int, body *huma.Schema) map[string]*huma.Response {
	good := &huma.Response{Description: http.StatusText(status)}
	if body != nil {
		good.Content = map[string]*huma.MediaType{"application/json": {Schema: body}}
	}
	return map[string]*huma.Response{
		strconv.Itoa(status): good,
		"default":            {Description: "An error; the status follows from its code.", Content: map[string]*huma.MediaType{"application/json": {Schema: s.schemaOf(new(api.Error))}}},
	}
}

// describeBody tells the description what the raw body of an operation holds: it is
// read by the project's own decoder, which takes YAML too and names line and field.
func (s *Server) describeBody(path, method string, schema *huma.Schema) {
	item := s.api.OpenAPI().Paths[path]
	op := map[string]*huma.Operation{http.MethodPost: item.Post, http.MethodPut: item.Put}[method]
	op.RequestBody.Content = map[string]*huma.MediaType{"application/json": {Schema: schema}, "application/yaml": {Schema: schema}}
}

// watchMedia describes the events of a watch. OpenAPI 3.1 has no word for the items of a
// stream; each event's data is one of the schemas.
func (s *Server) watchMedia(k *api.Kind) *huma.MediaType {
	object, fault := &huma.Schema{Ref: "#/components/schemas/" + k.Name}, s.schemaOf(new(api.Error))
	synced := &huma.Schema{Type: huma.TypeObject, Required: []string{"revision"}, Properties: map[string]*huma.Schema{"revision": {Type: huma.TypeInteger}}}
	return &huma.MediaType{
		Schema: &huma.Schema{OneOf: []*huma.Schema{object, synced, fault}, Description: "With watch=true, server-sent events (WHATWG HTML, section 9.2) without end; the data of each is JSON. " +
			"changed: the object, new or as it is now; deleted: what is known of an object that is gone or no longer meets the selector; synced: all that was there has come; " +
			"error: the stream ends. The id of changed and deleted is the revision to go on from. A comment comes every 15 seconds."},
		Example: "id: 17\nevent: changed\ndata: {\"apiVersion\":\"" + api.Version + "\",\"kind\":\"" + k.Name + "\",…}\n\nevent: synced\ndata: {\"revision\":17}\n\n",
	}
}

func (s *Server) gone() *huma.Response {
	return &huma.Response{Description: "The revision to go on from is not in the history (any more, or in this life of the core): list again, then watch from that.",
		Content: map[string]*huma.MediaType{"application/json": {Schema: s.schemaOf(new(api.Error))}}}
}

// describeRoute mentions a route that speaks a protocol of its own.
func (s *Server) describeRoute(r Route) {
	if r.Doc == "" {
		return
	}
	method, path, found := strings.Cut(r.Pattern, " ")
	if !found {
		method, path = http.MethodGet, r.Pattern
	}
	id := strings.Trim(strings.NewReplacer("/", "-", "{", "", "}", "").Replace(path), "-")
	op := &huma.Operation{OperationID: "route-" + id, Method: method, Path: path, Summary: r.Doc, Tags: []string{"protocols"},
		Responses: map[string]*huma.Response{"default": {Description: "As the protocol says."}}}
	for name := range strings.SplitSeq(path, "{") {
		if name, _, ok := strings.Cut(name, "}"); ok {
			op.Parameters = append(op.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}})
		}
	}
	if r.Needs.On == Room {
		op.Security = []map[string][]string{{}}
	}
	s.api.OpenAPI().AddOperation(op)
}
