package compose

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"

	"tributary.dev/tributary/pkg/api"
)

// extensionKey is the one x- field that is read: services.*.x-tributary.env lists
// Config objects whose environment is added.
const extensionKey = "x-tributary"

// serviceName is what fits a container id of containerd and stands between APP/ and
// the end of a command line.
var serviceName = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

// service compiles one service; findings go to the compiler.
func (c *compiler) service(name string, in types.ServiceConfig) *api.Service {
	at := place("services", name)
	if len(name) > 63 || !serviceName.MatchString(name) {
		c.add(at, "use up to 63 letters and digits with single '-', '_' or '.' between", "the service's name cannot be used for a container")
	}
	s := &api.Service{
		Name: name, WorkingDir: in.WorkingDir, User: in.User, Hostname: in.Hostname, Labels: in.Labels,
		StopSignal: in.StopSignal, ReadOnly: in.ReadOnly, Init: in.Init != nil && *in.Init,
	}
	c.user(at, in.User)
	c.image(at, in, s)
	c.process(at, in, s)
	s.Env = c.environment(at, in)
	s.EnvConfig = c.envConfigs(at, in)
	c.network(at, in, s)
	c.mounts(at, in, s)
	c.depends(at, in, s)
	s.Health = c.health(at, in.HealthCheck)
	s.Restart = c.restart(at, in)
	s.Resources = c.resources(at, in)
	c.gpus(at, in, s)
	c.claims(in, s)
	c.rights(at, in, s)
	c.scale(at, in)
	return s
}

func (c *compiler) image(at string, in types.ServiceConfig, s *api.Service) {
	at = join(at, "image")
	if in.Image == "" {
		c.add(at, "name an image that was pushed with `edgectl app push`", "the service has no image")
		return
	}
	ref, err := reference.Parse(in.Image)
	if err != nil {
		remedy := "write repository:tag or repository@sha256: and 64 hex digits"
		c.add(at, remedy, "%q is not an image reference: %v", clip(in.Image), err)
		return
	}
	if d, ok := ref.(reference.Digested); ok && d.Digest().Algorithm() != "sha256" {
		c.add(at, "name it by its sha256 digest", "the digest algorithm %s is not supported", d.Digest().Algorithm())
	}
	host, _, found := strings.Cut(in.Image, "/")
	if found && (strings.ContainsAny(host, ".:") || host == "localhost") {
		c.add(at, fmt.Sprintf("push it with `edgectl app push` and write it without %s/", clip(host)), "devices take images from the core's registry alone, not from %s", clip(host))
		return
	}
	if found && c.opts.Tenant != "" && host != c.opts.Tenant {
		c.add(at, fmt.Sprintf("push the image to %[1]s/… with `edgectl app push` and name it %[1]s/%[2]s", c.opts.Tenant, clip(path.Base(in.Image))),
			"%q belongs to the tenant %s, and the app to %s", clip(in.Image), clip(host), c.opts.Tenant)
		return
	}
	s.Image = in.Image
}

func (c *compiler) process(at string, in types.ServiceConfig, s *api.Service) {
	s.Entrypoint, s.Command = in.Entrypoint, in.Command
	for field, list := range map[string][]string{"entrypoint": in.Entrypoint, "command": in.Command} {
		if list != nil && len(list) == 0 {
			c.add(join(at, field), "leave it out for the image's own, or write the program to run", "an empty %s is not supported", field)
		}
	}
	if in.WorkingDir != "" && !filepath.IsAbs(in.WorkingDir) {
		c.add(join(at, "working_dir"), "write it from the root: /srv", "%q is not an absolute path", clip(in.WorkingDir))
	}
	if in.StopSignal != "" && !signalName.MatchString(in.StopSignal) {
		c.add(join(at, "stop_signal"), "write SIGTERM, SIGINT, SIGQUIT or another signal of Linux", "%q is not a signal", clip(in.StopSignal))
	}
	if d := in.StopGracePeriod; d != nil {
		s.StopGrace = c.duration(join(at, "stop_grace_period"), *d, 0, time.Hour)
	}
	if in.Hostname != "" && (len(in.Hostname) > 63 || !hostName.MatchString(in.Hostname)) {
		c.add(join(at, "hostname"), "use letters, digits, '-' and '.', at most 63", "%q is not a host name", clip(in.Hostname))
	}
}

var (
	signalName = regexp.MustCompile(`^(SIG)?(HUP|INT|QUIT|ABRT|KILL|USR1|USR2|TERM|STOP|WINCH|PWR|ALRM|CONT|RTMIN(\+\d{1,2})?|RTMAX(-\d{1,2})?)$|^([1-9]|[1-5]\d|6[0-4])$`)
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
)

func (c *compiler) duration(at string, d types.Duration, low, high time.Duration) api.Duration {
	v := time.Duration(d)
	if v < low || v > high {
		c.add(at, fmt.Sprintf("from %v to %v", low, high), "%v is out of range", v)
	}
	return api.Duration(v)
}

// health brings a check to exec form. Defaults are those of Docker.
func (c *compiler) health(at string, in *types.HealthCheckConfig) *api.HealthCheck {
	if in == nil || in.Disable {
		return nil
	}
	at = join(at, "healthcheck")
	out := &api.HealthCheck{Interval: api.Duration(30 * time.Second), Timeout: api.Duration(30 * time.Second), Retries: 3}
	switch test := in.Test; {
	case len(test) == 0:
		c.add(join(at, "test"), `write test: ["CMD", "program", "argument"]; images carry no check of their own`, "the check has no command")
	case test[0] == "NONE" && len(test) == 1:
		return nil
	case test[0] == "CMD" && len(test) > 1:
		out.Test = test[1:]
	case test[0] == "CMD-SHELL" && len(test) == 2 && strings.TrimSpace(test[1]) != "":
		out.Test = []string{"/bin/sh", "-c", test[1]}
	default:
		c.add(join(at, "test"), `start it with CMD, CMD-SHELL (one command line) or NONE, or write one line of shell`, "the command cannot be read")
	}
	if in.Interval != nil {
		out.Interval = c.duration(join(at, "interval"), *in.Interval, time.Second, 24*time.Hour)
	}
	if in.Timeout != nil {
		out.Timeout = c.duration(join(at, "timeout"), *in.Timeout, time.Millisecond, time.Hour)
	}
	if in.StartPeriod != nil {
		out.StartPeriod = c.duration(join(at, "start_period"), *in.StartPeriod, 0, 24*time.Hour)
	}
	if in.Retries != nil {
		if *in.Retries < 1 || *in.Retries > 1000 {
			c.add(join(at, "retries"), "from 1 to 1000", "%d is out of range", *in.Retries)
		} else {
			out.Retries = int(*in.Retries)
		}
	}
	return out
}

// restart reads restart and deploy.restart_policy; the latter wins, as in Compose. A
// file that says nothing gets on-failure, where Docker would leave the program dead:
// nobody stands before the box to start it again.
func (c *compiler) restart(at string, in types.ServiceConfig) api.Restart {
	policy, count, counted := strings.Cut(in.Restart, ":")
	out := api.Restart{Policy: policy}
	switch {
	case in.Restart == "":
		out.Policy = "on-failure"
	case policy != "no" && policy != "always" && policy != "unless-stopped" && policy != "on-failure":
		c.add(join(at, "restart"), `write "no", always, on-failure[:n] or unless-stopped`, "%q is not a restart policy", clip(in.Restart))
	case counted:
		n, err := strconv.Atoi(count)
		if policy != "on-failure" || err != nil || n < 1 || n > 1<<20 {
			c.add(join(at, "restart"), "write a count behind on-failure alone: on-failure:5", "%q is not a restart policy", clip(in.Restart))
		}
		out.Max = n
	}
	if in.Deploy == nil || in.Deploy.RestartPolicy == nil {
		return out
	}
	p := in.Deploy.RestartPolicy
	where := place("services", in.Name, "deploy", "restart_policy")
	out = api.Restart{}
	switch p.Condition {
	case "", "any":
		out.Policy = "always"
	case "on-failure":
		out.Policy = "on-failure"
	case "none":
		out.Policy = "no"
	default:
		c.add(join(where, "condition"), "write none, on-failure or any", "%q is not a condition", clip(p.Condition))
	}
	if p.MaxAttempts != nil && *p.MaxAttempts > 0 {
		if out.Policy != "on-failure" || *p.MaxAttempts > 1<<20 {
			c.add(join(where, "max_attempts"), "use it with condition: on-failure, up to 1048576", "attempts are counted for failures alone")
		} else {
			out.Max = int(*p.MaxAttempts)
		}
	}
	return out
}

// resources reads deploy.resources and the older mem_limit, cpus, pids_limit. Given
// both ways, they must agree, as compose-go's own consistency check wants.
func (c *compiler) resources(at string, in types.ServiceConfig) api.Resources {
	out := api.Resources{CPUs: float32Text(in.CPUS), MemoryBytes: int64(in.MemLimit), MemoryReservation: int64(in.MemReservation), Pids: in.PidsLimit}
	if in.CPUQuota > 0 {
		period := in.CPUPeriod
		if period == 0 {
			period = 100_000
		}
		if out.CPUs == 0 && period > 0 {
			out.CPUs = math.Round(float64(in.CPUQuota)/float64(period)*1000) / 1000
		}
	}
	if out.Pids == -1 {
		out.Pids = 0
	}
	if in.Deploy != nil {
		limits := place("services", in.Name, "deploy", "resources", "limits")
		if l := in.Deploy.Resources.Limits; l != nil {
			out.CPUs = merged(c, join(limits, "cpus"), out.CPUs, float32Text(float32(l.NanoCPUs)))
			out.MemoryBytes = merged(c, join(limits, "memory"), out.MemoryBytes, int64(l.MemoryBytes))
			out.Pids = merged(c, join(limits, "pids"), out.Pids, l.Pids)
		}
		if r := in.Deploy.Resources.Reservations; r != nil {
			out.MemoryReservation = merged(c, place("services", in.Name, "deploy", "resources", "reservations", "memory"), out.MemoryReservation, int64(r.MemoryBytes))
		}
	}
	service := place("services", in.Name)
	limited := func(group, name, old string) string {
		return c.written(place("services", in.Name, "deploy", "resources", group, name), join(service, old))
	}
	if out.CPUs < 0 || out.CPUs > 4096 || out.CPUs > 0 && out.CPUs < 0.01 {
		c.add(limited("limits", "cpus", "cpus"), "give cpus from 0.01 to 4096", "%v processors is out of range", out.CPUs)
	}
	const least = 6 << 20 // below it runc cannot start a container (Docker has the same floor)
	const most = 1 << 50  // past it sizes overflow on their way
	if out.MemoryBytes < 0 || out.MemoryBytes > most || out.MemoryBytes > 0 && out.MemoryBytes < least {
		c.add(limited("limits", "memory", "mem_limit"), "give from 6m to 1024t of memory", "the memory limit is out of range")
	}
	if out.MemoryReservation < 0 || out.MemoryBytes > 0 && out.MemoryReservation > out.MemoryBytes {
		c.add(limited("reservations", "memory", "mem_reservation"), "reserve no more memory than the limit", "a memory reservation of %d bytes is out of range", out.MemoryReservation)
	}
	if out.Pids < 0 || out.Pids > 1<<22 {
		c.add(limited("limits", "pids", "pids_limit"), "give a limit of 1 to 4194304 processes, or leave it out", "a limit of %d processes is out of range", out.Pids)
	}
	return out
}

// written is the first of some fields that stands in the file, or the last.
func (c *compiler) written(fields ...string) string {
	for _, at := range fields {
		if _, ok := c.lines[at]; ok {
			return at
		}
	}
	return fields[len(fields)-1]
}

// userName is one half of a user: a name of /etc/passwd or /etc/group, or a number.
var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?$`)

// user refuses what no container can run as.
func (c *compiler) user(at, user string) {
	if user == "" {
		return
	}
	name, group, grouped := strings.Cut(user, ":")
	for i, half := range []string{name, group} {
		if i == 1 && !grouped {
			break
		}
		_, notDigits := strconv.ParseUint(half, 10, 64)
		n, tooLarge := strconv.ParseUint(half, 10, 32)
		if !userName.MatchString(half) || notDigits == nil && (tooLarge != nil || n == 1<<32-1) {
			c.add(join(at, "user"), "write NAME, UID, NAME:GROUP or UID:GID, with numbers from 0 to 4294967294", "%q is no user", clip(user))
			return
		}
	}
}

// float32Text widens compose-go's float32 to the float64 of the same digits: 0.1, not
// 0.10000000149.
func float32Text(v float32) float64 {
	wide, err := strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64)
	if err != nil {
		return 0
	}
	return wide
}

func merged[T int64 | float64](c *compiler, at string, old, given T) T {
	if old != 0 && given != 0 && old != given {
		c.add(at, "give it in one place", "%v is given here, %v in the service's own field", given, old)
	}
	if given != 0 {
		return given
	}
	return old
}

func (c *compiler) scale(at string, in types.ServiceConfig) {
	const remedy = "leave it out; for more instances name further services, or select more devices"
	if in.Scale != nil && *in.Scale != 1 {
		c.add(join(at, "scale"), remedy, "%d instances on one device are not supported", *in.Scale)
	}
	if in.Deploy == nil {
		return
	}
	if r := in.Deploy.Replicas; r != nil && *r != 1 {
		c.add(place("services", in.Name, "deploy", "replicas"), remedy, "%d instances on one device are not supported", *r)
	}
	if m := in.Deploy.Mode; m != "" && m != "replicated" && m != "global" {
		c.add(place("services", in.Name, "deploy", "mode"), "leave it out", "the mode %q is not supported", clip(m))
	}
}

func (c *compiler) depends(at string, in types.ServiceConfig, s *api.Service) {
	at = join(at, "depends_on")
	for _, name := range keys(in.DependsOn) {
		d := in.DependsOn[name]
		other, ok := c.project.Services[name]
		if !ok {
			if !d.Required {
				continue
			}
			if disabled, off := c.project.DisabledServices[name]; off {
				c.add(join(at, name), "enable the profile in spec.profiles, or write required: false", "the service belongs to the profile %s, which is not enabled", clip(strings.Join(disabled.Profiles, " or ")))
			} else {
				c.add(join(at, name), "the services are "+clip(strings.Join(keys(c.project.Services), ", ")), "there is no such service")
			}
			continue
		}
		condition := d.Condition
		switch condition {
		case "":
			condition = types.ServiceConditionStarted
		case types.ServiceConditionStarted:
		case types.ServiceConditionHealthy:
			if h := other.HealthCheck; h == nil || h.Disable || len(h.Test) > 0 && h.Test[0] == "NONE" {
				c.add(join(at, name), "give "+name+" a healthcheck, or wait for service_started", "the service has no health check to wait for")
			}
		case types.ServiceConditionCompletedSuccessfully:
			if other.Restart == "always" || other.Restart == "unless-stopped" {
				c.add(join(at, name), "set its restart to on-failure", "the service never completes: its restart policy is %s", other.Restart)
			}
		default:
			c.add(place("services", in.Name, "depends_on", name, "condition"), "write service_started, service_healthy or service_completed_successfully", "%q is not a condition", clip(condition))
		}
		s.DependsOn = append(s.DependsOn, api.Dependency{Service: name, Condition: condition})
	}
}
