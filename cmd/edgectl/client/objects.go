package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// objectPath is the REST path of a kind, or of one object of it.
func objectPath(k *api.Kind, name string) string {
	p := "/api/v1/" + k.Plural
	if name != "" {
		p += "/" + url.PathEscape(name)
	}
	return p
}

// Get reads one object.
func (c *Client) Get(ctx context.Context, k *api.Kind, name string) (*api.Object, error) {
	o := new(api.Object)
	return o, c.Do(ctx, http.MethodGet, objectPath(k, name), nil, nil, o)
}

// Delete removes one object.
func (c *Client) Delete(ctx context.Context, k *api.Kind, name string) error {
	return c.Do(ctx, http.MethodDelete, objectPath(k, name), nil, nil, nil)
}

// DeleteIn removes one object of a tenant.
func (c *Client) DeleteIn(ctx context.Context, k *api.Kind, tenant, name string) error {
	return c.Do(ctx, http.MethodDelete, objectPath(k, name), url.Values{"tenant": {tenant}}, nil, nil)
}

// Create makes one object; the answer may show what is shown once.
func (c *Client) Create(ctx context.Context, k *api.Kind, o *api.Object) (*api.Object, error) {
	out := new(api.Object)
	return out, c.Do(ctx, http.MethodPost, objectPath(k, ""), nil, o, out)
}

// Act posts to one of a device's verbs: approve, retire.
func (c *Client) Act(ctx context.Context, device, verb string) (*api.Object, error) {
	k, err := api.LookupKind(api.KindDevice)
	if err != nil {
		return nil, err
	}
	out := new(api.Object)
	return out, c.Do(ctx, http.MethodPost, objectPath(k, device)+"/"+verb, nil, nil, out)
}

// Uncordon tells the core that a card or slice of a device is well.
func (c *Client) Uncordon(ctx context.Context, device, id string) error {
	k, err := api.LookupKind(api.KindDevice)
	if err != nil {
		return err
	}
	return c.Do(ctx, http.MethodPost, objectPath(k, device)+"/uncordon", nil, map[string]string{"id": id}, nil)
}

// Unlock has the core answer the challenge of a device's console.
func (c *Client) Unlock(ctx context.Context, device, challenge string) (answer UnlockAnswer, err error) {
	k, err := api.LookupKind(api.KindDevice)
	if err != nil {
		return answer, err
	}
	return answer, c.Do(ctx, http.MethodPost, objectPath(k, device)+"/unlock", nil, map[string]string{"challenge": challenge}, &answer)
}

// UnlockAnswer is what to type at the device, and the challenge's name in events. Proven:
// the device could read who it is.
type UnlockAnswer struct {
	Answer    string `json:"answer"`
	Challenge string `json:"challenge"`
	Proven    bool   `json:"proven"`
}

// ListOptions choose objects.
type ListOptions struct {
	Selector   string
	AllTenants bool
	// Tenant is another than the client's.
	Tenant string
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	if o.Selector != "" {
		q.Set("selector", o.Selector)
	}
	if o.AllTenants {
		q.Set("tenant", "*")
	} else if o.Tenant != "" {
		q.Set("tenant", o.Tenant)
	}
	return q
}

type page struct {
	Items    []*api.Object `json:"items"`
	Next     string        `json:"next"`
	Revision int64         `json:"revision"`
}

// List reads all objects of a kind, page by page.
func (c *Client) List(ctx context.Context, k *api.Kind, o ListOptions) ([]*api.Object, error) {
	all := []*api.Object{}
	q := o.query()
	for {
		var p page
		if err := c.Do(ctx, http.MethodGet, objectPath(k, ""), q, nil, &p); err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == "" {
			return all, nil
		}
		q.Set("after", p.Next)
	}
}

// Result is what became of one applied object.
type Result struct {
	Tenant   string      `json:"tenant"`
	Kind     string      `json:"kind"`
	Name     string      `json:"name"`
	Action   string      `json:"action"` // created, configured, unchanged, pruned, unknown
	Revision int64       `json:"revision"`
	Warnings []string    `json:"warnings,omitempty"`
	Changes  []Change    `json:"changes,omitempty"`
	Object   *api.Object `json:"object,omitempty"`
}

// Change is one field that differs.
type Change struct {
	Path string `json:"path"`
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
}

// ApplyOptions tune one Apply: DryRun writes nothing, Hold gives no device what is written.
type ApplyOptions struct{ DryRun, Hold bool }

// Apply creates or changes objects, all or none. The n-th object stands on line n of
// the request, so that an error's line tells which object it means.
func (c *Client) Apply(ctx context.Context, objects []*api.Object, dryRun bool) ([]Result, error) {
	return c.ApplyWith(ctx, objects, ApplyOptions{DryRun: dryRun})
}

// ApplyWith is Apply with all that can be said of it.
func (c *Client) ApplyWith(ctx context.Context, objects []*api.Object, o ApplyOptions) ([]Result, error) {
	var body []byte
	for _, o := range objects {
		b, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		body = append(append(body, b...), '\n')
	}
	q := url.Values{}
	if o.DryRun {
		q.Set("dryRun", "true")
	}
	if o.Hold {
		q.Set("hold", "true")
	}
	reply, err := c.Open(ctx, http.MethodPost, "/api/v1/apply", q, body, "application/yaml")
	if err != nil {
		return nil, err
	}
	defer reply.Close()
	var out struct {
		Results []Result `json:"results"`
	}
	return out.Results, Read(reply, &out)
}

// Event is one step of a watch: "changed" and "deleted" with an object, "synced" after
// the objects that were there at the start.
type Event struct {
	Type   string
	Object *api.Object
}

// Watch calls on for every event until ctx ends or on fails. When the connection
// breaks it goes on where it was; when the core has forgotten that point it starts
// over, with a further "synced".
func (c *Client) Watch(ctx context.Context, k *api.Kind, o ListOptions, on func(Event) error) error {
	var from int64
	pause := 500 * time.Millisecond
	for {
		before := from
		err := c.watchOnce(ctx, k, o, &from, on)
		var stop *handlerError
		if errors.As(err, &stop) {
			return stop.err
		}
		if ctx.Err() != nil {
			return nil
		}
		switch code := api.CodeOf(err); {
		case err == nil, code == api.Unavailable:
		case from != 0: // the point is forgotten: start over
			from = 0
		default:
			return err
		}
		if from > before {
			pause = 500 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, 15*time.Second)
	}
}

type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }

func (c *Client) watchOnce(ctx context.Context, k *api.Kind, o ListOptions, from *int64, on func(Event) error) error {
	q := o.query()
	q.Set("watch", "true")
	if *from > 0 {
		q.Set("from", strconv.FormatInt(*from, 10))
	}
	body, err := c.Open(ctx, http.MethodGet, objectPath(k, ""), q, nil, "")
	if err != nil {
		return err
	}
	defer body.Close()
	resumed := *from > 0
	return ReadEvents(body, func(e RawEvent) error {
		switch e.Type {
		case "changed", "deleted":
			obj := new(api.Object)
			if err := json.Unmarshal([]byte(e.Data), obj); err != nil {
				return err
			}
			if err := on(Event{e.Type, obj}); err != nil {
				return &handlerError{err}
			}
		case "synced":
			var s struct {
				Revision int64 `json:"revision"`
			}
			if err := json.Unmarshal([]byte(e.Data), &s); err != nil {
				return err
			}
			*from = max(*from, s.Revision)
			if resumed {
				return nil
			}
			if err := on(Event{Type: "synced"}); err != nil {
				return &handlerError{err}
			}
		case "error":
			e2 := &api.Error{}
			if json.Unmarshal([]byte(e.Data), e2) == nil && e2.Message != "" {
				return e2
			}
			return api.Errorf(api.Unavailable, "the watch ended")
		}
		if n, err := strconv.ParseInt(e.ID, 10, 64); err == nil && *from > 0 {
			*from = max(*from, n)
		}
		return nil
	})
}

// WatchEvents calls on with the newest events of a query (device, tenant), the oldest
// first, then with each that comes, until the stream ends (code Unavailable), ctx ends or
// on fails.
func (c *Client) WatchEvents(ctx context.Context, q url.Values, on func(raw []byte) error) error {
	q = maps.Clone(q)
	q.Set("watch", "true")
	body, err := c.Open(ctx, http.MethodGet, "/api/v1/events", q, nil, "")
	if err != nil {
		return err
	}
	defer body.Close()
	return ReadEvents(body, func(e RawEvent) error {
		switch e.Type {
		case "event":
			return on([]byte(e.Data))
		case "error":
			e2 := &api.Error{}
			if json.Unmarshal([]byte(e.Data), e2) == nil && e2.Message != "" {
				return e2
			}
		}
		return nil
	})
}

// RawEvent is one server-sent event.
type RawEvent struct{ ID, Type, Data string }

// maxEvent bounds one line of a stream.
const maxEvent = 8 << 20

// ReadEvents reads server-sent events (WHATWG HTML section 9.2) until the stream ends
// or on fails. A stream that simply ends gives an error of code Unavailable.
func ReadEvents(r io.Reader, on func(RawEvent) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	var e RawEvent
	var data []string
	size := 0
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" {
			if e.Data = strings.Join(data, "\n"); e.Data != "" {
				if err := on(e); err != nil {
					return err
				}
			}
			e, data, size = RawEvent{}, nil, 0
			continue
		}
		if size += len(line); size > maxEvent {
			return api.Errorf(api.TooLarge, "an event of the stream is too large")
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			e.Type = value
		case "id":
			e.ID = value
		case "data":
			data = append(data, value)
		}
	}
	return &api.Error{Code: api.Unavailable, Message: "the stream ended", Remedy: "try again", Err: lines.Err()}
}
