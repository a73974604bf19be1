package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"tributary.dev/tributary/pkg/api"
)

// OrderRollout tells a rollout to pause, resume, promote, approve, abort, keep or undo; it answers the
// Rollout, of undo perhaps another.
func (c *Client) OrderRollout(ctx context.Context, name, order string) (*api.Object, error) {
	out := new(api.Object)
	return out, c.Do(ctx, http.MethodPost, "/api/v1/rollouts/"+url.PathEscape(name)+"/"+order, nil, nil, out)
}

// RolloutDevices lists how far each device of a rollout is.
func (c *Client) RolloutDevices(ctx context.Context, name string) ([]api.RolloutDevice, error) {
	var out struct {
		Items []api.RolloutDevice `json:"items"`
	}
	return out.Items, c.Do(ctx, http.MethodGet, "/api/v1/rollouts/"+url.PathEscape(name)+"/devices", nil, nil, &out)
}

// PlanRollout says what the Rollout among some objects would do, with the others.
func (c *Client) PlanRollout(ctx context.Context, objects []*api.Object) (*api.RolloutPlan, error) {
	var body []byte
	for _, o := range objects {
		b, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		body = append(append(body, b...), '\n')
	}
	reply, err := c.Open(ctx, http.MethodPost, "/api/v1/rollout-plan", nil, body, "application/yaml")
	if err != nil {
		return nil, err
	}
	defer reply.Close()
	out := new(api.RolloutPlan)
	return out, Read(reply, out)
}

// Revisions tells what became of an object, or does so by a verb: "" only asks, undo goes back to a
// number (0: the one before), revoke takes one back.
func (c *Client) Revisions(ctx context.Context, kind, name, verb string, number int64) (*api.RevisionHistory, error) {
	path, method, q := "/api/v1/revisions/"+url.PathEscape(kind)+"/"+url.PathEscape(name), http.MethodGet, url.Values{}
	if verb != "" {
		path, method = path+"/"+verb, http.MethodPost
	}
	if number != 0 {
		q.Set(map[string]string{"undo": "to", "revoke": "revision"}[verb], strconv.FormatInt(number, 10))
	}
	out := new(api.RevisionHistory)
	return out, c.Do(ctx, method, path, q, nil, out)
}

// PinDevice gives a device a revision that nothing overrules, or ends that.
func (c *Client) PinDevice(ctx context.Context, device, kind, name string, revision int64, unpin bool) error {
	in := map[string]any{"kind": kind, "object": name, "revision": revision, "unpin": unpin}
	return c.Do(ctx, http.MethodPost, "/api/v1/devices/"+url.PathEscape(device)+"/pin", nil, in, nil)
}
