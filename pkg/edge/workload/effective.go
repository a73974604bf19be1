package workload

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/pattern"
)

// imageHost stands for "my parent's registry, whichever it is" in the names that
// containerd keeps of images.
const imageHost = "core.tributary"

// specVersion is part of every hash. It grows when this program would make another
// container of the same service; that replaces every container on every device.
const specVersion = 1

// safeName is what may become a folder's or container's name.
var safeName = pattern.New(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// effective turns apps as set into what plan works on.
func (m *Manager) effective(apps []App) []wantApp {
	ports := map[string]string{}
	var out []wantApp
	for i := range apps {
		a := &apps[i]
		w := wantApp{Name: a.Bundle.App, Digest: a.Digest, Refused: refuse(a, ports), Hold: a.Hold}
		for n := range a.Bundle.Services {
			w.Services = append(w.Services, effectiveService(a, n))
		}
		out = append(out, w)
	}
	return out
}

// held makes up an app of which only its containers are known: what each was made
// of is what is wanted. m.mu is held.
func (m *Manager) held(app string) []wantService {
	newest := map[string]*tracked{}
	for _, t := range m.instances {
		if was := newest[t.in.Key.Service]; t.in.Key.App == app && (was == nil || t.in.Created.After(was.in.Created)) {
			newest[t.in.Key.Service] = t
		}
	}
	var out []wantService
	for _, t := range newest {
		s := t.svc
		s.Name = t.in.Key.Service
		out = append(out, wantService{Service: s, Hash: t.in.Hash, Image: t.image, StartFirst: mayStartFirst(&s), Order: t.in.Order})
	}
	slices.SortFunc(out, func(a, b wantService) int { return cmp.Or(a.Order-b.Order, strings.Compare(a.Name, b.Name)) })
	return out
}

func effectiveService(a *App, n int) wantService {
	s := a.Bundle.Services[n]
	s.Env = environment(a, &s)
	return wantService{Service: s, Hash: hashService(s), Image: imageName(s.Image), StartFirst: mayStartFirst(&s), Order: n}
}

func imageName(ref string) string { return imageHost + "/" + ref }

// environment adds the Env of the named Config objects below the service's own.
func environment(a *App, s *api.Service) map[string]string {
	if len(s.EnvConfig) == 0 {
		return s.Env
	}
	env := map[string]string{}
	for _, name := range s.EnvConfig {
		maps.Copy(env, a.Configs[name].Env)
	}
	maps.Copy(env, s.Env)
	return env
}

// hashService names the container that a service makes. What edged itself applies
// to a running container (restart policy, health check, order, how to stop) is left
// out, and so is the content of Config and Secret files, which changes in place.
// Inline files are part of the app's own version and stay in.
func hashService(s api.Service) string {
	s.DependsOn, s.Health, s.Restart, s.StopSignal, s.StopGrace = nil, nil, api.Restart{}, "", 0
	b, err := json.Marshal(struct {
		Version int
		Service api.Service
	}{specVersion, s})
	if err != nil { // a Service holds nothing that JSON cannot carry, but NaN
		b = fmt.Append(nil, s)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

// mayStartFirst tells whether two versions may run side by side for a while. Host ports
// are no hindrance: the new instance gets them when it is found good.
func mayStartFirst(s *api.Service) bool {
	if s.NetworkMode == "host" || len(s.Devices) > 0 || len(s.Claims) > 0 {
		return false
	}
	// Two writers on one volume is what most databases guard against, or worse, do not.
	return !slices.ContainsFunc(s.Mounts, func(m api.Mount) bool {
		return (m.Kind == api.MountVolume || m.Kind == api.MountBind) && !m.ReadOnly
	})
}

// refuse checks what the core should have checked, as far as this device would
// come to harm, and host ports against the apps before it. It returns "" when all
// is well.
func refuse(a *App, ports map[string]string) string {
	if !safeName.MatchString(a.Bundle.App) {
		return fmt.Sprintf("%q cannot be an app's name", a.Bundle.App)
	}
	for _, v := range a.Bundle.Volumes {
		if !safeName.MatchString(v) {
			return fmt.Sprintf("%q cannot be a volume's name", v)
		}
	}
	seen := map[string]bool{}
	for i := range a.Bundle.Services {
		s := &a.Bundle.Services[i]
		if !safeName.MatchString(s.Name) || seen[s.Name] {
			return fmt.Sprintf("%q cannot be a service's name, or is there twice", s.Name)
		}
		seen[s.Name] = true
		if !strings.Contains(s.Image, "@sha256:") {
			return fmt.Sprintf("service %s: image %q is not named by digest", s.Name, s.Image)
		}
		for _, mt := range s.Mounts {
			if mt.Kind == api.MountVolume && !slices.Contains(a.Bundle.Volumes, mt.Source) {
				return fmt.Sprintf("service %s: volume %q is not declared by the app", s.Name, mt.Source)
			}
		}
		for _, p := range s.Ports {
			if p.Host == 0 {
				continue
			}
			// One name per number and protocol: two apps on two addresses of one port are
			// rare, and a rule for every address would shadow them.
			name := fmt.Sprintf("%s/%d/%s", p.HostIP, p.Host, p.Protocol)
			owner := a.Bundle.App + "/" + s.Name
			if other, taken := ports[name]; taken && other != owner {
				return fmt.Sprintf("service %s: host port %d/%s is taken by %s; publish another port", s.Name, p.Host, p.Protocol, other)
			}
			ports[name] = owner
		}
	}
	return ""
}
