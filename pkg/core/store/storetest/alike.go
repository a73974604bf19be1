package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Whole is all that an implementation keeps.
type Whole interface {
	store.Store
	store.Manifests
	store.Boxes
	store.Events
	store.Tokens
	store.Attestations
	Epoch(ctx context.Context) (uint64, error)
	SetEpoch(ctx context.Context, epoch uint64) error
}

// Clear takes out whatever the suites put in. Revisions go on.
func Clear(t interface{ Fatal(args ...any) }, s Whole) {
	ctx := context.Background()
	var errs []error
	for i := range api.Kinds { // what others refer to comes first there, and goes last here
		kind := api.Kinds[len(api.Kinds)-1-i].Name
		for left := -1; left != 0; { // tenants go from the leaves up
			items, _, _, err := s.List(ctx, store.Query{Kind: kind})
			if errs = append(errs, err); len(items) == left || err != nil {
				t.Fatal(errors.Join(errs...))
			}
			left = len(items)
			for _, o := range items {
				if err := s.Delete(ctx, o.Key(), 0); err != nil && kind != api.KindTenant {
					errs = append(errs, err)
				}
			}
		}
	}
	for n := range byte(4) {
		id := api.DeviceID{n, 0xff}
		errs = append(errs, s.DeleteBox(ctx, id), s.DeleteManifest(ctx, id))
	}
	tokens, err := s.ListTokens(ctx)
	for _, token := range tokens {
		errs = append(errs, s.RevokeToken(ctx, token.TokenID))
	}
	if err := errors.Join(append(errs, err, s.DropEvents(ctx, time.UnixMilli(1<<60)))...); err != nil {
		t.Fatal(err)
	}
}

// Alike asks the same of two implementations that hold the same, whose clocks and UIDs are
// alike, and wants the same answers, errors too.
func Alike(rt *rapid.T, a, b Whole) {
	for i := range rapid.IntRange(1, 40).Draw(rt, "operations") {
		name := rapid.SampledFrom(operationNames).Draw(rt, "operation")
		do := operations[name](rt)
		of, and := answer(do(a)), answer(do(b))
		if of != and {
			rt.Fatalf("operation %d, %s: one answers\n%s\nthe other\n%s", i, name, of, and)
		}
	}
}

// answer makes what came back comparable. What a database says of its own faults is its own.
func answer(v any, err error) string {
	out, failed := json.Marshal(v)
	if failed != nil {
		return failed.Error()
	}
	if code := api.CodeOf(err); err != nil && code == api.Internal {
		return "internal"
	} else if err != nil {
		return fmt.Sprint(code, " ", err)
	}
	return string(out)
}

type operation func(s Whole) (any, error)

func revision(s Whole) (int64, error) {
	_, _, now, err := s.List(context.Background(), store.Query{Kind: "None"})
	return now, err
}

// The names that are drawn sort otherwise by the rules of a language, and two of them cannot
// be stored at all.
var (
	drawName   = rapid.SampledFrom([]string{"a", "b", "B", "a-b", "a.b", "aa", "Z", "z", "\u00e4", "a\x00", "\xff"})
	drawTenant = rapid.SampledFrom([]string{"default", "acme", "Zed"})
	drawKind   = rapid.SampledFrom([]string{api.KindConfig, api.KindDevice, api.KindTenant})
	drawText   = rapid.SampledFrom([]string{"", "plain", "\u6f22", "a\x00b", "\xffx", "'?'"})
	drawLabels = rapid.SampledFrom([]map[string]string{nil, {"k": "v"}, {"k": "\x00"}, {api.Reserved + "arch": "arm64", "k": "w"}})
	drawStatus = rapid.SampledFrom([]any{nil, 1, "\u0000", map[string]int{"n": 2}})
	drawDevice = rapid.Custom(func(t *rapid.T) api.DeviceID { return api.DeviceID{rapid.ByteRange(0, 3).Draw(t, "device"), 0xff} })
	drawKey    = rapid.Custom(func(t *rapid.T) api.Key {
		return api.Key{Tenant: drawTenant.Draw(t, "tenant"), Kind: drawKind.Draw(t, "kind"), Name: drawName.Draw(t, "name")}
	})
	drawObject = rapid.Custom(func(t *rapid.T) *api.Object {
		k := drawKey.Draw(t, "key")
		return &api.Object{Kind: k.Kind, Metadata: api.Meta{Tenant: k.Tenant, Name: k.Name, Labels: drawLabels.Draw(t, "labels")},
			Spec: json.RawMessage(rapid.SampledFrom([]string{"", "{}", `{ "env": {"X":"1"} }`, `{"env":{"X":"2"}}`}).Draw(t, "spec"))}
	})
)

var operations = map[string]func(rt *rapid.T) operation{
	"put": func(rt *rapid.T) operation {
		o, opts := drawObject.Draw(rt, "object"), store.PutOptions{Create: rapid.Bool().Draw(rt, "create"), InTenant: rapid.Bool().Draw(rt, "in tenant"),
			DryRun: rapid.IntRange(0, 4).Draw(rt, "dry") == 0, Status: drawStatus.Draw(rt, "status")}
		opts.Update = !opts.Create && rapid.Bool().Draw(rt, "update")
		ago := rapid.Int64Range(-8, 4).Draw(rt, "changes ago")
		return func(s Whole) (any, error) {
			now, err := revision(s)
			o := *o
			if o.Metadata.Revision = now - ago; ago < 0 {
				o.Metadata.Revision = 0
			}
			if err != nil {
				return nil, err
			}
			return s.Put(context.Background(), &o, opts)
		}
	},
	"status": func(rt *rapid.T) operation {
		k, v := drawKey.Draw(rt, "key"), drawStatus.Draw(rt, "status")
		return func(s Whole) (any, error) { return nil, s.PutStatus(context.Background(), k, v) }
	},
	"probed": func(rt *rapid.T) operation {
		p := store.Probed{Key: drawKey.Draw(rt, "key"), Status: drawStatus.Draw(rt, "status"), Labels: drawLabels.Draw(rt, "labels"), Relabel: rapid.Bool().Draw(rt, "relabel")}
		return func(s Whole) (any, error) { return nil, s.PutProbed(context.Background(), []store.Probed{p}) }
	},
	"delete": func(rt *rapid.T) operation {
		k := drawKey.Draw(rt, "key")
		return func(s Whole) (any, error) { return nil, s.Delete(context.Background(), k, 0) }
	},
	"get": func(rt *rapid.T) operation {
		k := drawKey.Draw(rt, "key")
		return func(s Whole) (any, error) { return s.Get(context.Background(), k) }
	},
	"list": func(rt *rapid.T) operation {
		q := store.Query{Kind: drawKind.Draw(rt, "kind"), Limit: rapid.IntRange(0, 3).Draw(rt, "limit"), Selector: rapid.SampledFrom([]string{"", "k=v", "k"}).Draw(rt, "selector"),
			Tenant: rapid.SampledFrom([]string{"", "default", "Zed", "\x00"}).Draw(rt, "tenant"), After: rapid.SampledFrom([]string{"", "", "default/a", "acme/B", "x\x00/"}).Draw(rt, "after")}
		return func(s Whole) (any, error) {
			items, next, revision, err := s.List(context.Background(), q)
			return []any{items, next, revision}, err
		}
	},
	"many": func(rt *rapid.T) operation {
		keys := rapid.SliceOfN(drawKey, 0, 6).Draw(rt, "keys")
		return func(s Whole) (any, error) {
			found, err := s.GetMany(context.Background(), keys)
			var out []string
			for _, o := range found {
				out = append(out, text(o))
			}
			slices.Sort(out)
			return out, err
		}
	},
	"reaches": func(rt *rapid.T) operation {
		ago := rapid.Int64Range(-5, 100).Draw(rt, "ago")
		return func(s Whole) (any, error) {
			now, err := revision(s)
			if err != nil {
				return nil, err
			}
			return nil, s.Reaches(now - ago)
		}
	},
	"epoch": func(rt *rapid.T) operation {
		more := rapid.Uint64Range(0, 1).Draw(rt, "more")
		return func(s Whole) (any, error) {
			now, err := s.Epoch(context.Background())
			if err == nil {
				err = s.SetEpoch(context.Background(), now+more)
			}
			return now, err
		}
	},
	"enrol": func(rt *rapid.T) operation {
		e := store.Enrolment{Box: store.Box{Device: drawDevice.Draw(rt, "device"), Tenant: drawTenant.Draw(rt, "tenant"), Name: rapid.SampledFrom([]string{"x", "X", "y"}).Draw(rt, "name"),
			PublicKey: []byte{1, 0}, SealKey: []byte(drawText.Draw(rt, "key")), Token: "t"}}
		if rapid.Bool().Draw(rt, "new") {
			e.Object, e.Status = drawObject.Draw(rt, "object"), drawStatus.Draw(rt, "status")
			e.Event = &store.DeviceEvent{Device: e.Box.Device, Event: api.Event{Name: store.EventOnline}}
		}
		return func(s Whole) (any, error) { return nil, s.Enrol(context.Background(), e) }
	},
	"boxes": func(rt *rapid.T) operation {
		gone := drawDevice.Draw(rt, "device")
		drop := rapid.Bool().Draw(rt, "drop")
		return func(s Whole) (any, error) {
			var out []string
			err := s.EachBox(context.Background(), func(b store.Box) error { out = append(out, fmt.Sprint(b)); return nil })
			slices.Sort(out)
			if drop && err == nil {
				err = s.DeleteBox(context.Background(), gone)
			}
			return out, err
		}
	},
	"note": func(rt *rapid.T) operation {
		e := store.DeviceEvent{Device: drawDevice.Draw(rt, "device"), Label: drawText.Draw(rt, "label"), Event: api.Event{Time: rapid.Int64Range(0, 5).Draw(rt, "time"),
			Name: rapid.SampledFrom([]string{store.EventOnline, store.EventOffline, "\x00"}).Draw(rt, "event"), Message: drawText.Draw(rt, "message"), Actor: drawText.Draw(rt, "actor")}}
		return func(s Whole) (any, error) {
			return nil, s.AppendEvents(context.Background(), []store.DeviceEvent{e, e})
		}
	},
	"events": func(rt *rapid.T) operation {
		of := rapid.SampledFrom([][]api.DeviceID{nil, {}, {{1, 0xff}}, append(make([]api.DeviceID, 100), api.DeviceID{2, 0xff}, api.DeviceID{3, 0xff})}).Draw(rt, "of")
		limit := rapid.IntRange(1, 5).Draw(rt, "limit")
		before := rapid.Int64Range(-20, 3).Draw(rt, "before")
		return func(s Whole) (any, error) {
			if before > 0 {
				return nil, s.DropEvents(context.Background(), time.UnixMilli(before))
			}
			list, err := s.Events(context.Background(), of, limit)
			for i := range list {
				list[i].ID = 0 // it grows; a number may be left out
			}
			return list, err
		}
	},
	"presence": func(*rapid.T) operation {
		return func(s Whole) (any, error) {
			online, err := s.LastPresence(context.Background())
			return fmt.Sprint(online), err
		}
	},
	"manifests": func(rt *rapid.T) operation {
		r := &store.ManifestRecord{Device: drawDevice.Draw(rt, "device"), Epoch: rapid.Uint64().Draw(rt, "epoch"), Generation: rapid.Uint64().Draw(rt, "generation"), Raw: []byte{0, 1},
			Seals: map[string][32]byte{"s": {1}}, Tombstones: map[string]uint64{"x": 1}}
		drop := rapid.Bool().Draw(rt, "drop")
		return func(s Whole) (any, error) {
			err := s.SaveManifests(context.Background(), []*store.ManifestRecord{r})
			if drop {
				err = s.DeleteManifest(context.Background(), r.Device)
			}
			if err != nil {
				return nil, err
			}
			var out []string
			err = s.EachManifest(context.Background(), func(r *store.ManifestRecord) error { out = append(out, fmt.Sprint(*r)); return nil })
			slices.Sort(out)
			return out, err
		}
	},
	"attestations": func(rt *rapid.T) operation {
		id, record := drawDevice.Draw(rt, "device"), []byte(drawText.Draw(rt, "record"))
		return func(s Whole) (any, error) {
			if err := s.PutAttestation(context.Background(), id, record); err != nil {
				return nil, err
			}
			var out []string
			err := s.EachAttestation(context.Background(), func(id api.DeviceID, record []byte) error { out = append(out, fmt.Sprint(id, record)); return nil })
			slices.Sort(out)
			return out, err
		}
	},
	"tokens": func(rt *rapid.T) operation {
		name, random := drawText.Draw(rt, "name"), bytes.Repeat([]byte{rapid.ByteRange(0, 2).Draw(rt, "random")}, 30)
		revoke := rapid.SampledFrom([]string{"", "AQEBAQEB", "x\x00"}).Draw(rt, "revoke")
		return func(s Whole) (any, error) {
			ctx := context.Background()
			if revoke != "" {
				return nil, s.RevokeToken(ctx, revoke)
			}
			token, err := s.CreateToken(ctx, name, store.Viewer, time.Time{}, bytes.NewReader(random))
			if err != nil {
				return nil, err
			}
			p, err := s.CheckToken(ctx, strings.Replace(token, "AAAAAAAA", "\x00", 1))
			list, listErr := s.ListTokens(ctx)
			return []any{token, p, fmt.Sprint(err), list}, listErr
		}
	},
}

var operationNames = func() (names []string) {
	for name := range operations {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}()
