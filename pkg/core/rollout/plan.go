package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
)

// Blobs lists what a device of an architecture fetches for an artifact when it has nothing, by digest.
type Blobs func(ctx context.Context, repo, digest, arch string) (map[string]int64, error)

// plan says what a rollout of a name would do. coming are revisions that the same request makes.
func (l *Loop) plan(ctx context.Context, tenant, name string, spec *api.RolloutSpec, coming map[api.Key]*store.Revision, blobs Blobs) (*api.RolloutPlan, error) {
	out := &api.RolloutPlan{}
	var err error
	if out.Change, err = Settle(ctx, l.cfg.Store, tenant, spec.Change, coming); err != nil {
		return nil, err
	}
	facts, err := l.factsOf(ctx, tenant)
	if err != nil {
		return nil, err
	}
	fleet, err := fleetOf(ctx, l.cfg, tenant, spec.Target.Fleet)
	if err != nil {
		return nil, err
	}
	keys := keysOf(tenant, out.Change)
	given, err := l.cfg.Store.GivenOf(ctx, keys)
	if err != nil {
		return nil, err
	}
	if out.Waits, err = l.changing(ctx, tenant, name, keys); err != nil {
		return nil, err
	}
	picked := targets(tenant, spec, fleet, facts)
	out.Waves = make([]api.PlanWave, Waves(spec))
	for i := range out.Waves {
		w := WaveOf(spec, i)
		out.Waves[i] = api.PlanWave{Name: w.Name, Approve: w.Approve, Pause: w.Pause, Devices: []string{}}
	}
	for id, n := range Assign(spec, name, candidates(picked)) {
		device, err := api.ParseDeviceID(id)
		if err != nil {
			return nil, err
		}
		f := facts[device]
		if why := refusedBy(out.Change, keys, given, device, f); why != "" {
			out.Refused = append(out.Refused, api.RolloutDevice{Name: f.key.Name, Site: f.site, Wave: n + 1, State: string(Skipped), Why: why})
			delete(picked, device)
			continue
		}
		if out.Waves[n].Devices = append(out.Waves[n].Devices, f.key.Name); !f.online {
			out.Waves[n].Away++
		}
	}
	for i := range out.Waves {
		slices.Sort(out.Waves[i].Devices)
	}
	slices.SortFunc(out.Refused, func(a, b api.RolloutDevice) int { return strings.Compare(a.Name, b.Name) })
	if blobs != nil {
		out.Links, err = l.links(ctx, tenant, out.Change, facts, picked, coming, blobs)
	}
	return out, err
}

// refusedBy says why a device would not get a change.
func refusedBy(list []api.RolloutChange, keys []api.Key, given map[api.Key]*store.Given, id api.DeviceID, f *fact) string {
	for i, c := range list {
		if g := given[keys[i]]; g != nil {
			if own, ok := g.Own[id]; ok && own.Rollout == store.Pinned {
				return fmt.Sprintf("a person pinned %s %s at revision %d", c.Kind, c.Name, own.Number)
			}
			now, next := g.Revisions[g.All], g.Revisions[c.Revision]
			if c.Kind == api.KindRelease && now != nil && next != nil && counterFor(next, f.labels) < counterFor(now, f.labels) && releaseFor(now, f.labels) == f.release {
				return fmt.Sprintf("the release has the security counter %d, and the device accepts none below %d", counterFor(next, f.labels), counterFor(now, f.labels))
			}
		}
	}
	return ""
}

// links sums up what would cross which link: of each, what devices below need and none of them has.
func (l *Loop) links(ctx context.Context, tenant string, list []api.RolloutChange, facts, picked map[api.DeviceID]*fact, coming map[api.Key]*store.Revision, blobs Blobs) ([]api.PlanLink, error) {
	need, err := l.artifacts(ctx, tenant, list, coming)
	if err != nil {
		return nil, err
	}
	cache := map[string]map[string]int64{}
	fetch := func(into map[string]int64, refs []artifact, arch string) error {
		for _, r := range refs {
			name := r.repo + "@" + r.digest + " " + arch
			if _, known := cache[name]; !known {
				list, err := blobs(ctx, r.repo, r.digest, arch)
				if err != nil && api.CodeOf(err) != api.NotFound { // what is gone from the registry nobody fetches
					return err
				}
				cache[name] = list
			}
			for digest, size := range cache[name] {
				into[digest] = size
			}
		}
		return nil
	}
	wants, has := map[api.DeviceID]map[string]int64{}, map[api.DeviceID]map[string]int64{}
	for id, f := range facts {
		wants[id], has[id] = map[string]int64{}, map[string]int64{}
		arch := f.labels[api.Reserved+"arch"]
		for _, a := range f.apps {
			if err := fetch(has[id], need.had[a.Bundle], arch); err != nil {
				return nil, err
			}
		}
		if picked[id] == nil {
			continue
		}
		for _, kind := range need.next {
			if !kind.runs(f) {
				continue
			}
			if err := fetch(wants[id], kind.refs(f), arch); err != nil {
				return nil, err
			}
		}
	}
	return crossings(facts, wants, has), nil
}

// artifact is one that devices fetch.
type artifact struct{ repo, digest string }

// needed is what changed objects have devices fetch.
type needed struct {
	runs func(*fact) bool
	refs func(*fact) []artifact
}

type artifacts struct {
	next []needed
	had  map[string][]artifact // by the digest of a bundle that devices run
}

// artifacts reads what the change names, and what devices may have by now.
func (l *Loop) artifacts(ctx context.Context, tenant string, list []api.RolloutChange, coming map[api.Key]*store.Revision) (out artifacts, err error) {
	fleets, _, _, err := l.cfg.Store.List(ctx, store.Query{Tenant: tenant, Kind: api.KindFleet})
	if err != nil {
		return out, err
	}
	specs := make([]api.FleetSpec, len(fleets))
	for i, o := range fleets {
		if err := json.Unmarshal(o.Spec, &specs[i]); err != nil {
			return out, err
		}
	}
	uses := func(which func(*api.FleetSpec) bool) func(*fact) bool {
		return func(f *fact) bool {
			return slices.ContainsFunc(specs, func(s api.FleetSpec) bool { return s.Selector.Matches(f.labels) && which(&s) })
		}
	}
	for _, c := range list {
		key := api.Key{Tenant: tenant, Kind: c.Kind, Name: c.Name}
		r := coming[key]
		if r == nil || r.Number != c.Revision {
			if r, err = l.cfg.Store.Revision(ctx, key, c.Revision); err != nil {
				return out, err
			}
		}
		switch c.Kind {
		case api.KindApp:
			refs := appArtifacts(r)
			out.next = append(out.next, needed{uses(func(s *api.FleetSpec) bool { return slices.Contains(s.AllApps(), c.Name) }), func(*fact) []artifact { return refs }})
		case api.KindRelease:
			out.next = append(out.next, needed{uses(func(s *api.FleetSpec) bool { return s.Release == c.Name }), func(f *fact) []artifact { return releaseArtifacts(r, f.labels) }})
		}
	}
	out.had = map[string][]artifact{}
	given, err := l.cfg.Store.GivenOf(ctx, nil)
	for key, g := range given {
		if key.Tenant != tenant || key.Kind != api.KindApp {
			continue
		}
		for _, r := range g.Revisions {
			var s api.AppObjectStatus
			if json.Unmarshal(r.Status, &s) == nil {
				out.had[s.Bundle] = appArtifacts(r)
			}
		}
	}
	return out, err
}

func appArtifacts(r *store.Revision) (out []artifact) {
	var s api.AppObjectStatus
	if json.Unmarshal(r.Status, &s) != nil || s.Bundle == "" {
		return nil
	}
	out = append(out, artifact{s.Repo, s.Bundle})
	for _, i := range s.Images {
		out = append(out, artifact{i.Repo, i.Digest})
	}
	return out
}

func releaseArtifacts(r *store.Revision, labels map[string]string) []artifact {
	var s api.ReleaseSpec
	if json.Unmarshal(r.Spec, &s) != nil {
		return nil
	}
	repo, digest, ok := strings.Cut(s.For(labels[api.Reserved+"profile"], labels[api.Reserved+"arch"]), "@")
	if !ok {
		return nil
	}
	return []artifact{{repo, digest}}
}

// maxLinks bounds the way up, so that two boxes attached to each other make no endless one.
const maxLinks = 16

// crossings adds up each link: the digests that something below it needs and nothing below it has.
func crossings(facts map[api.DeviceID]*fact, wants, has map[api.DeviceID]map[string]int64) (out []api.PlanLink) {
	need, have := map[api.DeviceID]map[string]int64{}, map[api.DeviceID]map[string]bool{}
	for id := range facts {
		need[id], have[id] = map[string]int64{}, map[string]bool{}
	}
	for id := range facts {
		for at, hops := id, 0; facts[at] != nil && hops < maxLinks; hops++ {
			for digest, size := range wants[id] {
				need[at][digest] = size
			}
			for digest := range has[id] {
				have[at][digest] = true
			}
			next, err := api.ParseDeviceID(facts[at].parent)
			if err != nil {
				break
			}
			at = next
		}
	}
	for id, f := range facts {
		link := api.PlanLink{Parent: f.parent, Child: f.key.Name}
		if p, err := api.ParseDeviceID(f.parent); err == nil && facts[p] != nil {
			link.Parent = facts[p].key.Name
		}
		for digest, size := range need[id] {
			if !have[id][digest] {
				link.Artifacts++
				link.Bytes += size
			}
		}
		if link.Artifacts > 0 {
			out = append(out, link)
		}
	}
	slices.SortFunc(out, func(a, b api.PlanLink) int { return strings.Compare(a.Parent+"\x00"+a.Child, b.Parent+"\x00"+b.Child) })
	return out
}
