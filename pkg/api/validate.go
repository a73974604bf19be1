package api

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tributary.dev/tributary/pkg/pattern"
)

// Bounds on specs. A manifest carries configs and secrets inline and is bounded by
// 1 MiB, so each stays well below.
const (
	maxConfigBytes = 256 << 10
	maxSecretBytes = 64 << 10
	maxAppBytes    = 512 << 10
	maxListed      = 1024 // names in a fleet's lists
)

// DefaultTenant owns what names no tenant.
const DefaultTenant = "default"

// SetDefaults fills what a person may leave out: apiVersion and tenant.
func SetDefaults(o *Object) {
	if o.APIVersion == "" {
		o.APIVersion = Version
	}
	if o.Metadata.Tenant == "" {
		o.Metadata.Tenant = DefaultTenant
	}
}

// Validate checks an object whose defaults are set: envelope, metadata and spec.
// The error is an *Error of code Invalid; every fault found is in it, each with its
// field. It looks at this object alone; Admit adds what depends on the stored one.
func Validate(o *Object) error { return validateAt(o, nil) }

func validateAt(o *Object, lines map[string]int) error {
	f := &findings{lines: lines}
	kind, err := LookupKind(o.Kind)
	if err != nil || kind.Name != o.Kind {
		f.addf("kind", "the kinds are "+strings.Join(KindNames(), ", "), "there is no kind %s", quote(o.Kind))
		return f.err("the object")
	}
	if o.APIVersion != Version {
		f.addf("apiVersion", "write apiVersion: "+Version, "%s is not known here", quote(o.APIVersion))
	}
	validateMeta(&o.Metadata, f)
	spec := kind.NewSpec()
	if len(o.Spec) > 0 {
		if err := json.Unmarshal(o.Spec, spec); err != nil {
			f.add("spec", err.Error(), "compare with `edgectl schema "+kind.Name+"`")
			return f.err(kind.Name)
		}
	}
	kind.validate(spec, f)
	if kind.Name == KindBillingProfile && o.Metadata.Name != BillingProfileName {
		f.add("metadata.name", "a tenant has one BillingProfile, and it is named "+BillingProfileName, "name it "+BillingProfileName)
	}
	if kind.Name == KindQuota && o.Metadata.Name != QuotaName {
		f.add("metadata.name", "a tenant has one Quota, and it is named "+QuotaName, "name it "+QuotaName)
	}
	if kind.Name == KindDevice && o.Metadata.Name == "core" {
		f.add("metadata.name", `"core" names the root of the tree`, "give the device another name")
	}
	return f.err(kind.Name + " " + o.Metadata.Name)
}

func validateMeta(m *Meta, f *findings) {
	validateName(m.Name, "metadata.name", f)
	validateName(m.Tenant, "metadata.tenant", f)
	validateLabels(m.Labels, "metadata.labels", f)
	total := 0
	for _, k := range sortedKeys(m.Annotations) {
		validateLabelKey(k, join("metadata.annotations", k), f)
		total += len(k) + len(m.Annotations[k])
	}
	if total > maxAnnotationBytes {
		f.addf("metadata.annotations", "keep them below 64 KiB", "the annotations take %d bytes", total)
	}
	if m.Revision < 0 {
		f.add("metadata.revision", "a revision is not negative", "remove it, or take it from `edgectl get -o yaml`")
	}
}

func validateTenant(s *TenantSpec, f *findings) {
	if s.Parent != "" {
		validateName(s.Parent, "spec.parent", f)
	}
	validateText(s.DisplayName, "spec.displayName", f)
	validateAttest(s.Attest, f)
}

func validateSite(s *SiteSpec, f *findings) {
	validateText(s.DisplayName, "spec.displayName", f)
	validateText(s.Address, "spec.address", f)
	if v := s.Latitude; v != nil && !(*v >= -90 && *v <= 90) {
		f.addf("spec.latitude", "degrees north, from -90 to 90 (WGS 84)", "%v is no latitude", *v)
	}
	if v := s.Longitude; v != nil && !(*v >= -180 && *v <= 180) {
		f.addf("spec.longitude", "degrees east, from -180 to 180 (WGS 84)", "%v is no longitude", *v)
	}
	if (s.Latitude == nil) != (s.Longitude == nil) {
		f.add("spec", "latitude and longitude come together", "give both or neither")
	}
	if s.MaxDisrupted < 0 {
		f.add("spec.maxDisrupted", "a number of devices counts from 1", "leave it out for a quarter of the site's devices")
	}
}

func validateText(s, field string, f *findings) {
	if utf8.RuneCountInString(s) > 256 {
		f.add(field, "the text is longer than 256 characters", "shorten it")
	}
}

func validateDevice(s *DeviceSpec, f *findings) {
	if s.Site != "" {
		validateName(s.Site, "spec.site", f)
	}
	if len(s.Parents) > 16 {
		f.addf("spec.parents", "list the best 16", "there are %d parents", len(s.Parents))
		return
	}
	for i, p := range s.Parents {
		validateParent(p, index("spec.parents", i), f)
	}
	validateSettings(s.Settings, "spec.settings", f)
}

func validateParent(p ParentRef, at string, f *findings) {
	if p.Device != "core" {
		if _, err := ParseDeviceID(p.Device); err != nil {
			f.addf(join(at, "device"), "write a device id (13 characters, see `edgectl get devices -o wide`) or core", "%s is not a device id", quote(p.Device))
		}
	}
	host := p.Address
	if h, port, err := net.SplitHostPort(p.Address); err == nil {
		host = h
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			f.addf(join(at, "address"), "a port is 1 to 65535", "%s is not a port", quote(port))
		}
	} else if strings.Count(host, ":") == 1 || strings.HasPrefix(host, "[") {
		f.addf(join(at, "address"), "write host, host:port or [IPv6]:port", "%s is not an address", quote(p.Address))
		return
	}
	if !isHost(host) {
		f.addf(join(at, "address"), "write host, host:port or [IPv6]:port", "%s is not an address", quote(p.Address))
	}
	if p.HTTPSPort < 0 || p.HTTPSPort > 65535 {
		f.addf(join(at, "httpsPort"), "a port is 1 to 65535; 0 means the default", "%d is not a port", p.HTTPSPort)
	}
}

func isHost(s string) bool {
	if net.ParseIP(s) != nil {
		return true
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for _, part := range strings.Split(strings.ToLower(strings.TrimSuffix(s, ".")), ".") {
		if !IsName(part) {
			return false
		}
	}
	return true
}

func validateSettings(s *DeviceSettings, at string, f *findings) {
	if s == nil {
		return
	}
	within := func(d Duration, name string, low, high time.Duration) {
		if v := time.Duration(d); v != 0 && (v < low || v > high) {
			f.addf(join(at, name), fmt.Sprintf("from %v to %v; leave it out for the default", low, high), "%v is out of range", v)
		}
	}
	within(s.MeterInterval, "meterInterval", time.Second, 24*time.Hour)
	within(s.HealthInterval, "healthInterval", time.Second, time.Hour)
	within(s.VitalsInterval, "vitalsInterval", time.Second, time.Hour)
	bytes := func(v int64, name string) {
		if v != 0 && (v < 1<<20 || v > 1<<50) {
			f.addf(join(at, name), "from 1 MiB (1048576) to 1 PiB; leave it out for the default", "%d bytes is out of range", v)
		}
	}
	bytes(s.SpoolBytes, "spoolBytes")
	bytes(s.CacheBytes, "cacheBytes")
	if err := s.UpdateHours.Check(); err != nil {
		f.addf(join(at, "updateHours"), "write hours of the day in UTC, such as 22:00-04:30", "%v", err)
	}
	if v := s.UpdateBytesPerSecond; v != 0 && (v < 1<<10 || v > 1<<40) {
		f.addf(join(at, "updateBytesPerSecond"), "from 1024 to 1 TiB; leave it out for no bound", "%d bytes a second is out of range", v)
	}
	if err := CheckAcceleratorPolicies(s.Accelerators); err != nil {
		f.add(join(at, "accelerators")+err.Field, err.Message, err.Remedy)
	}
	validateUncordon(s.Uncordon, join(at, "uncordon"), f)
}

func validateFleet(s *FleetSpec, f *findings) {
	validateAttest(s.Attest, f)
	s.Selector.validate("spec.selector", f)
	if s.Selector.Empty() {
		f.add("spec.selector", "an empty selector picks no device", "give matchLabels or matchExpressions; for every device: matchExpressions: [{key: hw.tributary/arch, operator: Exists}]")
	}
	for _, l := range []struct {
		field string
		names []string
	}{{"spec.apps", s.Apps}, {"spec.configs", s.Configs}, {"spec.secrets", s.Secrets}, {"spec.flowPolicies", s.FlowPolicies}} {
		if len(l.names) > maxListed {
			f.addf(l.field, "use several fleets", "there are %d names; the most is %d", len(l.names), maxListed)
			continue
		}
		seen := map[string]bool{}
		for i, n := range l.names {
			validateName(n, index(l.field, i), f)
			if seen[n] {
				f.addf(index(l.field, i), "remove one of them", "%s is listed twice", quote(n))
			}
			seen[n] = true
		}
	}
	validatePlaced(s, f)
	if s.Release != "" {
		validateName(s.Release, "spec.release", f)
	}
	validateSettings(s.Settings, "spec.settings", f)
}

// artifactRef is "repository@sha256:hex", the repository as in the OCI distribution
// specification 1.1.
var artifactRef = pattern.New(`^[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*@sha256:[0-9a-f]{64}$`)

func validateApp(s *AppSpec, f *findings) {
	given := 0
	for _, text := range []string{s.Compose, s.ComposeFile, s.Artifact} {
		if text != "" {
			given++
		}
	}
	if given != 1 {
		f.add("spec", "exactly one of compose, composeFile and artifact is needed", "give the Compose text in compose, or a path in composeFile, or an artifact's reference in artifact")
	}
	if s.Artifact != "" && (len(s.Artifact) > 512 || !artifactRef.MatchString(s.Artifact)) {
		f.addf("spec.artifact", "write repository@sha256: and 64 hex digits, as `edgectl app push` prints it", "%s is not a reference by digest", quote(s.Artifact))
	}
	total := len(s.Compose)
	for _, name := range sortedKeys(s.Files) {
		total += len(s.Files[name])
		if name == "" || len(name) > 4096 {
			f.add(join("spec.files", name), "this is not a path", "use the path as the Compose file has it")
		}
	}
	if total > maxAppBytes {
		f.addf("spec", "put large files into the image or a volume", "the Compose file and its files take %d bytes; the most is %d", total, maxAppBytes)
	}
	seen := map[string]bool{}
	for i, p := range s.Profiles {
		if !profileName.MatchString(p) {
			f.addf(index("spec.profiles", i), "use letters, digits, '_', '.' and '-'", "%s is not a profile's name", quote(p))
		} else if seen[p] {
			f.addf(index("spec.profiles", i), "remove one of them", "%s is listed twice", quote(p))
		}
		seen[p] = true
	}
	for _, name := range sortedKeys(s.Variables) {
		if !isEnvName(name) {
			f.addf(join("spec.variables", name), "use letters, digits and '_', not starting with a digit", "%s is not a variable's name", quote(name))
		}
	}
}

// profileName is the compose-spec's pattern for profiles.
var profileName = pattern.New(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func validateConfig(s *ConfigSpec, f *findings) {
	total := 0
	validateFileNames(s.Files, "spec.files", f)
	for _, name := range sortedKeys(s.Files) {
		total += len(name) + len(s.Files[name])
	}
	for _, name := range sortedKeys(s.Env) {
		if !isEnvName(name) {
			f.addf(join("spec.env", name), "use letters, digits and '_', not starting with a digit", "%s is not a variable's name", quote(name))
		}
		if strings.ContainsRune(s.Env[name], 0) {
			f.add(join("spec.env", name), "the value holds a NUL byte", "put binary data into files")
		}
		total += len(name) + len(s.Env[name])
	}
	if total > maxConfigBytes {
		f.addf("spec", "put large files into the image or a volume", "the config takes %d bytes; the most is %d", total, maxConfigBytes)
	}
}

func validateSecret(s *SecretSpec, f *findings) {
	total := 0
	validateFileNames(s.Data, "spec.data", f)
	for _, name := range sortedKeys(s.Data) {
		total += len(name) + len(s.Data[name])
	}
	if total > maxSecretBytes {
		f.addf("spec", "a secret is for keys and passwords; encrypt bulk data and keep its key here", "the secret takes %d bytes; the most is %d", total, maxSecretBytes)
	}
}

// validateFileNames takes relative paths that stay where they are put. Names that begin
// with ".." are what a device makes a folder of files with (pkg/edge/workload).
func validateFileNames[V any](files map[string]V, field string, f *findings) {
	for _, name := range sortedKeys(files) {
		bad := name == "" || len(name) > 255 || path.IsAbs(name) || path.Clean(name) != name || name == "." ||
			strings.HasPrefix(name, "..") || strings.ContainsAny(name, "\x00\n\\")
		if bad {
			f.addf(join(field, name), "use a relative path such as nginx.conf or conf.d/site.conf; it does not begin with ..", "%s is not a file name", quote(name))
			continue
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, both := files[dir]; both {
				f.addf(join(field, name), "rename one of them", "%s is a file, and a folder with files in it", quote(dir))
			}
		}
	}
}

func validateJoinToken(s *JoinTokenSpec, f *findings) {
	validateLabels(s.Labels, "spec.labels", f)
	for _, k := range sortedKeys(s.Labels) {
		if strings.HasPrefix(k, Reserved) {
			f.addf(join("spec.labels", k), "use another prefix", "labels under %s are set by the device itself", Reserved)
		}
	}
	if s.Site != "" {
		validateName(s.Site, "spec.site", f)
	}
	if s.Uses < 0 {
		f.addf("spec.uses", "give a count, or 0 for no bound", "%d is not a count", s.Uses)
	}
}

// validate checks a selector's keys, operators and values.
func (s Selector) validate(field string, f *findings) {
	validateLabels(s.MatchLabels, join(field, "matchLabels"), f)
	for i, r := range s.MatchExpressions {
		at := index(join(field, "matchExpressions"), i)
		validateLabelKey(r.Key, join(at, "key"), f)
		switch r.Operator {
		case OpIn, OpNotIn:
			if len(r.Values) == 0 {
				f.addf(join(at, "values"), "name at least one value", "%s needs values", r.Operator)
			}
			for j, v := range r.Values {
				validateLabelValue(v, index(join(at, "values"), j), f)
			}
		case OpExists, OpDoesNotExist:
			if len(r.Values) > 0 {
				f.addf(join(at, "values"), "remove the values", "%s takes no values", r.Operator)
			}
		default:
			f.addf(join(at, "operator"), "use In, NotIn, Exists or DoesNotExist", "%s is not an operator", quote(r.Operator))
		}
	}
}
