package compose

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"tributary.dev/tributary/pkg/api"
)

// mounts reads volumes, tmpfs, configs and secrets.
func (c *compiler) mounts(at string, in types.ServiceConfig, s *api.Service) {
	for i, v := range in.Volumes {
		c.volume(index(join(at, "volumes"), i), v, s)
	}
	for i, entry := range in.Tmpfs {
		where := join(at, "tmpfs")
		if _, list := c.lines[index(where, i)]; list {
			where = index(where, i)
		}
		c.tmpfs(where, entry, s)
	}
	for i, r := range in.Configs {
		c.config(index(join(at, "configs"), i), types.FileReferenceConfig(r), s)
	}
	for i, r := range in.Secrets {
		c.secret(index(join(at, "secrets"), i), types.FileReferenceConfig(r), s)
	}
	targets := map[string]bool{}
	check := func(target string) {
		if targets[target] {
			c.add(at, "mount each path once", "two mounts go to %s", clip(target))
		}
		targets[target] = true
	}
	for _, m := range s.Mounts {
		check(m.Target)
	}
	for _, t := range s.Tmpfs {
		check(t.Target)
	}
}

// target checks a path in the container.
func (c *compiler) target(at, p string) (string, bool) {
	clean := path.Clean(p)
	if !path.IsAbs(p) || clean == "/" || strings.ContainsRune(p, 0) {
		c.add(at, "write a path below the root: /data", "%q cannot be mounted on", clip(p))
		return "", false
	}
	for _, system := range []string{"/proc", "/sys", "/dev"} {
		if clean == system || strings.HasPrefix(clean, "/proc/") || strings.HasPrefix(clean, "/sys/") {
			c.add(at, "choose another path in the container", "%q belongs to the system", clip(p))
			return "", false
		}
	}
	return clean, true
}

// oneLetter is the short form of a volume whose name is one letter, which compose-go takes
// for a drive of Windows.
var oneLetter = regexp.MustCompile(`^([A-Za-z]):((?:[^:$]|\$\w+|\$\{[^}]*\})+)(?::((?:rw|ro|nocopy)(?:,(?:rw|ro|nocopy))*))?$`)

// nameDrives writes such volumes in the long form, which leaves nothing to guess.
func nameDrives(dict map[string]any) {
	services, _ := dict["services"].(map[string]any)
	for _, s := range services {
		s, _ := s.(map[string]any)
		list, _ := s["volumes"].([]any)
		for i, v := range list {
			text, _ := v.(string)
			m := oneLetter.FindStringSubmatch(text)
			if m == nil {
				continue
			}
			long := map[string]any{"type": "volume", "source": m[1], "target": m[2]}
			for o := range strings.SplitSeq(m[3], ",") {
				switch o {
				case "ro", "rw":
					long["read_only"] = o == "ro"
				case "nocopy":
					long["volume"] = map[string]any{"nocopy": true}
				}
			}
			list[i] = long
		}
	}
}

func (c *compiler) volume(at string, v types.ServiceVolumeConfig, s *api.Service) {
	target, ok := c.target(at, v.Target)
	if !ok {
		return
	}
	m := api.Mount{Source: v.Source, Target: target, ReadOnly: v.ReadOnly}
	switch v.Type {
	case "volume":
		if !c.named(at, v) {
			return
		}
		m.Kind = api.MountVolume
		c.volumes[v.Source] = true
	case "bind":
		if v.Bind != nil && (v.Bind.Propagation != "" || v.Bind.Recursive != "") {
			c.add(at, "remove it", "mount propagation is not supported")
		}
		if v.Bind != nil && v.Bind.SELinux != "" {
			c.warn(at, "", "has no effect: devices do not run SELinux")
		}
		clean := path.Clean(v.Source)
		if path.IsAbs(v.Source) || strings.HasPrefix(v.Source, "~") || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsAny(v.Source, "\\\x00") {
			c.add(at, "write a path within the app's own data, such as ./data, or use a named volume, a config, or devices", "%q lies outside the app's data", clip(v.Source))
			return
		}
		m.Kind, m.Source = api.MountBind, clean
	case "tmpfs":
		t := api.Tmpfs{Target: target}
		if v.Tmpfs != nil {
			t.SizeBytes = int64(v.Tmpfs.Size)
		}
		if t.SizeBytes < 0 {
			c.add(at, "give a size such as 64m", "%d bytes is out of range", t.SizeBytes)
		}
		s.Tmpfs = append(s.Tmpfs, t)
		return
	default:
		c.add(at, "use volume, bind or tmpfs", "mounts of type %q are not supported", clip(v.Type))
		return
	}
	s.Mounts = append(s.Mounts, m)
}

func (c *compiler) named(at string, v types.ServiceVolumeConfig) bool {
	if v.Source == "" {
		c.add(at, "name it: data:"+clip(v.Target)+", and declare data under volumes: at the top", "a volume without a name would not survive an update")
		return false
	}
	if v.Volume != nil && v.Volume.Subpath != "" {
		c.add(at, "mount the whole volume", "subpath is not supported")
		return false
	}
	def, declared := c.project.Volumes[v.Source]
	if !declared {
		c.add(at, "declare it under volumes: at the top of the file", "there is no volume %q", clip(v.Source))
		return false
	}
	if len(v.Source) > 63 || !serviceName.MatchString(v.Source) {
		c.once(join("volumes", v.Source), "use letters and digits with single '-', '_' or '.' between", "the volume's name cannot be used for a folder")
		return false
	}
	if def.Driver != "" && def.Driver != "local" {
		c.once(join(join("volumes", v.Source), "driver"), "leave it out; volumes are folders on the device's data partition", "the volume driver %q is not supported", clip(def.Driver))
		return false
	}
	return true
}

// tmpfs reads "/run:size=64m,noexec".
func (c *compiler) tmpfs(at, entry string, s *api.Service) {
	where, options, _ := strings.Cut(entry, ":")
	target, ok := c.tmpfsTarget(at, where)
	if !ok {
		return
	}
	t := api.Tmpfs{Target: target}
	for _, o := range strings.Split(options, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "", "rw", "noexec", "nosuid", "nodev":
		case "size":
			n, err := units.RAMInBytes(value)
			if err != nil || n <= 0 {
				c.add(at, "give a size such as 64m", "%q is not a size", clip(value))
			}
			t.SizeBytes = n
		case "mode":
			if value != "1777" && value != "01777" {
				c.add(at, "set it in the container's entrypoint", "a mode other than 1777 is not supported")
			}
		default:
			c.add(at, "use size=…; remove the others", "the option %q is not supported", clip(o))
		}
	}
	s.Tmpfs = append(s.Tmpfs, t)
}

func (c *compiler) tmpfsTarget(at, p string) (string, bool) {
	if path.Clean(p) == "/dev/shm" {
		return "/dev/shm", true
	}
	return c.target(at, p)
}

// objectName is NAME or NAME/FILE of a Config or Secret object.
var objectName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(/[A-Za-z0-9_][A-Za-z0-9._/-]{0,200})?$`)

// object checks the name of an external config or secret.
func (c *compiler) object(group, kind, key, name string) (string, bool) {
	if name == "" {
		name = key
	}
	_, file, _ := strings.Cut(name, "/")
	if !objectName.MatchString(name) || file != "" && (path.Clean(file) != file || strings.HasPrefix(file, "../")) {
		c.once(join(group, key), "write name: NAME, or name: NAME/FILE for one file of it, after the "+kind+" object", "%q does not name a %s object", clip(name), kind)
		return "", false
	}
	return name, true
}

// config reads one reference to a config. External ones name a Config object: all its
// files as a folder, or with name: NAME/FILE one of them.
func (c *compiler) config(at string, r types.FileReferenceConfig, s *api.Service) {
	def, ok := c.project.Configs[r.Source]
	if !ok {
		c.add(at, "declare it under configs: at the top of the file", "there is no config %q", clip(r.Source))
		return
	}
	m, ok := c.reference(at, r, "/")
	if !ok {
		return
	}
	m.Kind = api.MountConfig
	where := join("configs", r.Source)
	switch {
	case bool(def.External):
		if m.Source, ok = c.object("configs", "Config", r.Source, def.Name); !ok {
			return
		}
	case def.File != "":
		content, ok := c.opts.Files[def.File]
		if !ok {
			c.once(join(where, "file"), "apply with `edgectl`, which reads the files along, or give it in spec.files", "the content of %q did not come along", clip(def.File))
			return
		}
		m.Inline = content
	case def.Environment != "":
		value, ok := c.vars[def.Environment]
		if !ok {
			c.once(join(where, "environment"), "set it in spec.variables", "the variable %s has no value", clip(def.Environment))
			return
		}
		m.Inline = value
	case c.hasField(where, "content"):
		m.Inline = def.Content
	default:
		c.once(where, "give it content, file or external: true", "the config has no content")
		return
	}
	if m.Inline == "" && m.Source == "" {
		// A Mount without source and content would be nothing; one newline is an empty file
		// for every reader of configuration.
		m.Inline = "\n"
	}
	s.Mounts = append(s.Mounts, m)
}

func (c *compiler) hasField(at, field string) bool {
	_, ok := c.lines[join(at, field)]
	return ok
}

// secret reads one reference to a secret, which is always a Secret object: all its
// values as a folder, or with name: NAME/KEY one of them.
func (c *compiler) secret(at string, r types.FileReferenceConfig, s *api.Service) {
	def, ok := c.project.Secrets[r.Source]
	if !ok {
		c.add(at, "declare it under secrets: at the top of the file", "there is no secret %q", clip(r.Source))
		return
	}
	m, ok := c.reference(at, r, "/run/secrets/")
	if !ok {
		return
	}
	if !bool(def.External) {
		c.once(join("secrets", r.Source), "write external: true and apply a Secret object of that name", "the secret names no Secret object")
		return
	}
	m.Kind = api.MountSecret
	if m.Source, ok = c.object("secrets", "Secret", r.Source, def.Name); ok {
		s.Mounts = append(s.Mounts, m)
	}
}

// reference reads target, owner and mode, common to configs and secrets.
func (c *compiler) reference(at string, r types.FileReferenceConfig, folder string) (m api.Mount, ok bool) {
	target := r.Target
	if target == "" {
		target = r.Source
	}
	if !path.IsAbs(target) {
		target = folder + target
	}
	if m.Target, ok = c.target(at, target); !ok {
		return m, false
	}
	m.ReadOnly = true
	for _, id := range []struct {
		field, text string
		to          *int
	}{{"uid", r.UID, &m.UID}, {"gid", r.GID, &m.GID}} {
		if id.text == "" {
			continue
		}
		n, err := strconv.ParseUint(id.text, 10, 31)
		if err != nil {
			c.add(join(at, id.field), "write the number; names are known in the image only", "%q is not a %s", clip(id.text), id.field)
			continue
		}
		*id.to = int(n)
	}
	if r.Mode != nil {
		if *r.Mode < 0 || *r.Mode > 0o777 {
			c.add(join(at, "mode"), "write it in octal: 0440", "%#o is not a mode", int64(*r.Mode))
		} else {
			m.Mode = uint32(*r.Mode)
		}
	}
	return m, true
}

// Objects are the names of the Config and Secret objects that a bundle uses.
type Objects struct{ Configs, Secrets []string }

// Refs lists what a bundle uses, each once, sorted.
func Refs(b *api.Bundle) (o Objects) {
	for _, s := range b.Services {
		o.Configs = append(o.Configs, s.EnvConfig...)
		for _, m := range s.Mounts {
			name, _, _ := strings.Cut(m.Source, "/")
			switch {
			case m.Kind == api.MountConfig && name != "":
				o.Configs = append(o.Configs, name)
			case m.Kind == api.MountSecret:
				o.Secrets = append(o.Secrets, name)
			}
		}
	}
	slices.Sort(o.Configs)
	slices.Sort(o.Secrets)
	o.Configs, o.Secrets = slices.Compact(o.Configs), slices.Compact(o.Secrets)
	return o
}
