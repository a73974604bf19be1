package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/workload"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/link"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/oci"
)

// desired brings the newest manifest into force.
//
// Reads: the link's manifest, bundles kept in state, the parent's artifacts, the seal
// key. Writes: the workload's set, the list of parents, the settings, bundles in state.
func (a *Agent) desired(ctx context.Context) error {
	failures := 0
	for {
		var retry <-chan time.Time
		if m := a.cfg.Link.Manifest(); m != nil {
			if a.apply(ctx, m) {
				failures = 0
			} else {
				failures++
				wait := min(a.cfg.RetryMax, a.cfg.RetryMin<<min(failures-1, 10))
				timer := time.NewTimer(wait/2 + time.Duration(rand.Int64N(int64(wait/2)+1)))
				defer timer.Stop()
				retry = timer.C
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.cfg.Link.Changed():
			failures = 0
		case <-a.cfg.Parents.Changed():
		case <-retry:
		}
	}
}

// apply is one attempt. It reports whether everything could be made ready.
func (a *Agent) apply(ctx context.Context, m *manifest.Signed) bool {
	w, findings := take(&m.Manifest)
	a.applyParents(w.parents)
	a.applySettings(w.settings)
	a.knowSealing(w.sealing)
	if a.cfg.Network != nil && findings[manifest.KeyNetwork] == nil {
		a.cfg.Network(w.network)
	}
	if a.cfg.Expected != nil {
		a.cfg.Expected(w.expected)
	}
	if a.cfg.Flows != nil && !slices.ContainsFunc(slices.Collect(maps.Keys(findings)), func(key string) bool { return strings.HasPrefix(key, manifest.PrefixFlow) }) {
		a.cfg.Flows(w.flows) // one that cannot be read must not take away what stands of it
	}
	secrets, sealFindings := a.openSecrets(w.sealed)
	maps.Copy(findings, sealFindings)

	out := outcome{of: version{m.Manifest.Epoch, m.Manifest.Generation}, wanted: map[string]string{}, unready: map[string]string{}}
	var apps []workload.App
	hold := ""
	if a.cfg.Hold != nil {
		hold = a.cfg.Hold()
	}
	for _, want := range w.apps {
		out.wanted[want.name] = want.bundle.Digest
		if hold != "" {
			out.unready[want.name] = hold
			apps = append(apps, workload.App{Bundle: api.Bundle{App: want.name}, Hold: hold})
			continue
		}
		var app workload.App
		err := a.mayBegin(want, w.permits)
		if err == nil {
			app, err = a.prepare(ctx, want, w.configs, secrets)
		}
		if err != nil {
			out.unready[want.name] = err.Error()
			if app, err = a.lastGood(want.name, w.configs, secrets); err != nil {
				// Left out of the set, what is here of it would be deleted.
				app = workload.App{Bundle: api.Bundle{App: want.name}, Hold: out.unready[want.name]}
			}
		}
		apps = append(apps, app)
	}
	if ctx.Err() != nil {
		return false
	}
	a.cfg.Workload.Set(apps)
	a.keepGood(apps, out)
	a.remember(out, apps)
	if message := unreadyWarning(out.unready, findings); message != "" {
		a.warn("manifest-incomplete", api.Degraded, message)
	} else {
		a.clear("manifest-incomplete")
	}
	return len(out.unready) == 0
}

// mayBegin says why another version of an app may not take the place of what runs: its rollout gave
// a permit for a time, and that is over or has not come. What runs nothing yet interrupts nothing.
func (a *Agent) mayBegin(want wantedApp, permits map[string]api.Permit) error {
	p, has := permits[manifest.PrefixApp+want.name]
	if !has {
		return nil
	}
	now, err := a.cfg.State.Get(goodBucket, want.name)
	if err != nil || now == nil || string(now) == want.bundle.Digest {
		return nil
	}
	if ok, why := p.Open(a.cfg.Clock.Now()); !ok { // check: the permit of an app
		return api.Errorf(api.Unavailable, "%s", why)
	}
	return nil
}

// remember puts the outcome where the report loop sees it.
func (a *Agent) remember(out outcome, apps []workload.App) {
	a.mu.Lock()
	changed := a.outcome.of != out.of
	out.applied = a.outcome.applied
	a.outcome = out
	a.mu.Unlock()
	if changed {
		a.cfg.Log.Info("manifest taken", "epoch", out.of.epoch, "generation", out.of.gen, "apps", len(apps), "unready", len(out.unready))
		a.cfg.State.CopySoon()
	}
	a.poke()
}

// prepare makes one app ready, fetching its bundle when it is not kept.
func (a *Agent) prepare(ctx context.Context, want wantedApp, configs, secrets map[string]api.ConfigData) (workload.App, error) {
	raw, err := a.cfg.State.Bundle(want.bundle.Digest)
	if err != nil || raw == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if raw, err = oci.PullArtifact(ctx, a.cfg.Artifacts, want.bundle.Repo, want.bundle.Digest, maxBundle); err != nil {
			return workload.App{}, fmt.Errorf("bundle not fetched: %w", err)
		}
		if err := a.cfg.State.PutBundle(want.bundle.Digest, raw); err != nil {
			a.cfg.Log.Warn("bundle not kept", "app", want.name, "err", err)
		}
	}
	return assemble(want.name, want.bundle.Digest, raw, configs, secrets)
}

// assemble joins a bundle with the objects that it names.
func assemble(name, digest string, raw []byte, configs, secrets map[string]api.ConfigData) (app workload.App, err error) {
	app.Digest = digest
	if app.Bundle, err = parseBundle(raw, name); err != nil {
		return app, err
	}
	needConfigs, needSecrets := needs(&app.Bundle)
	var missing, missingSecrets []string
	app.Configs, missing = pick(configs, needConfigs)
	app.Secrets, missingSecrets = pick(secrets, needSecrets)
	if missing = append(missing, missingSecrets...); len(missing) > 0 {
		return app, api.Errorf(api.NotFound, "needs %s, which the manifest does not give", strings.Join(missing, ", "))
	}
	return app, nil
}

// goodBucket remembers which bundle of each app was last made ready, so that a bundle
// that cannot be fetched does not take down the one before, restarts included.
const goodBucket = "good"

func (a *Agent) lastGood(name string, configs, secrets map[string]api.ConfigData) (workload.App, error) {
	digest, err := a.cfg.State.Get(goodBucket, name)
	if err != nil || digest == nil {
		return workload.App{}, api.Errorf(api.NotFound, "nothing to fall back to")
	}
	raw, err := a.cfg.State.Bundle(string(digest))
	if err != nil || raw == nil {
		return workload.App{}, api.Errorf(api.NotFound, "nothing to fall back to")
	}
	return assemble(name, string(digest), raw, configs, secrets)
}

// keepGood writes down what was made ready, and lets go of bundles that nobody needs.
func (a *Agent) keepGood(apps []workload.App, out outcome) {
	keep := map[string]bool{}
	for _, d := range out.wanted {
		keep[d] = true
	}
	for _, app := range apps {
		if app.Hold != "" {
			continue
		}
		keep[app.Digest] = true
		name := app.Bundle.App
		if old, err := a.cfg.State.Get(goodBucket, name); err == nil && string(old) == app.Digest {
			continue
		}
		if err := a.cfg.State.Put(goodBucket, name, []byte(app.Digest)); err != nil {
			a.cfg.Log.Warn("cannot note what was made ready", "app", name, "err", err)
			return // keep the older bundle, which the note still names
		}
	}
	var gone []link.Op
	err := a.cfg.State.Load(goodBucket, func(name, _ []byte) error {
		if _, wanted := out.wanted[string(name)]; !wanted {
			gone = append(gone, link.Op{Bucket: goodBucket, Key: slices.Clone(name)})
		}
		return nil
	})
	if err := errors.Join(err, a.cfg.State.Commit(gone, true)); err != nil {
		a.cfg.Log.Warn("notes of removed apps stay", "err", err)
	}
	if err := a.cfg.State.KeepBundles(func(d string) bool { return keep[d] }); err != nil {
		a.cfg.Log.Warn("old bundles not removed", "err", err)
	}
}

// openSecrets opens what is sealed to this device. The values stay in memory.
func (a *Agent) openSecrets(sealed map[string]sealedItem) (map[string]api.ConfigData, map[string]error) {
	out, findings := map[string]api.ConfigData{}, map[string]error{}
	me := a.cfg.Identity.Get()
	for name, s := range sealed {
		plain, err := me.OpenSecret(identity.SealInfo{Device: me.ID(), Name: name, Generation: s.gen}, s.body)
		var data api.ConfigData
		if err == nil {
			err = bodyMode.Unmarshal(plain, &data)
		}
		if err != nil {
			findings[manifest.PrefixSecret+name] = err
			continue
		}
		out[name] = data
	}
	return out, findings
}

// knowSealing has the box renew when the core has another sealing key than the box knows: with the certificate comes the
// trust of today.
func (a *Agent) knowSealing(name []byte) {
	me := a.cfg.Identity.Get()
	if len(name) == 0 || me.Trust == nil || me.Trust.Sealing == nil {
		return
	}
	if pub, ok := me.Trust.Sealing.PublicKey.(*ecdsa.PublicKey); ok && !bytes.Equal(name, identity.KID(pub)) {
		a.cfg.RenewTrust()
	}
}

func (a *Agent) applyParents(list []api.ParentRef) { a.cfg.Parents.Replace(list) }

func (a *Agent) applySettings(s *api.DeviceSettings) {
	next := withDefaults(api.DeviceSettings{})
	if s != nil {
		next = withDefaults(*s)
	}
	a.mu.Lock()
	changed := !reflect.DeepEqual(next, a.settings) || !a.settled // what rooms keep may be of an older manifest
	a.settled = true
	a.settings = next
	a.mu.Unlock()
	if changed {
		a.cfg.Settings(next)
		select {
		case a.newCadence <- struct{}{}:
		default:
		}
	}
}
