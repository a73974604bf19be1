package compose

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

// capabilities of Linux 6.12 (capabilities(7)), without CAP_.
var capabilities = strings.Fields(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
	DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE
	MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN
	SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)

// ulimits of Linux (getrlimit(2)).
var ulimits = strings.Fields(`as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack`)

// rights reads what widens or narrows a container: capabilities, devices, limits,
// sysctls, security options.
func (c *compiler) rights(at string, in types.ServiceConfig, s *api.Service) {
	s.CapAdd = c.caps(join(at, "cap_add"), in.CapAdd, false)
	s.CapDrop = c.caps(join(at, "cap_drop"), in.CapDrop, true)
	for i, d := range in.Devices {
		if dev := c.device(index(join(at, "devices"), i), d); dev != "" {
			s.Devices = append(s.Devices, dev)
		}
	}
	for _, name := range keys(in.Ulimits) {
		u, where := in.Ulimits[name], join(join(at, "ulimits"), name)
		if !slices.Contains(ulimits, name) {
			c.add(where, "the limits are "+strings.Join(ulimits, ", "), "there is no such limit")
			continue
		}
		if u == nil {
			continue
		}
		out := api.Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if u.Single != 0 {
			out.Soft, out.Hard = int64(u.Single), int64(u.Single)
		}
		if out.Soft < -1 || out.Hard < -1 || out.Hard != -1 && (out.Soft > out.Hard || out.Soft == -1) {
			c.add(where, "give soft and hard with soft at most hard; -1 means unlimited", "the limit is out of range")
		}
		s.Ulimits = append(s.Ulimits, out)
	}
	c.sysctls(at, in, s)
	for i, opt := range in.SecurityOpt {
		switch strings.ReplaceAll(opt, "=", ":") {
		case "no-new-privileges", "no-new-privileges:true":
			// Every container has it here.
		default:
			c.add(index(join(at, "security_opt"), i), "remove it; containers run under the default seccomp profile with no-new-privileges", "%q is not supported", clip(opt))
		}
	}
}

func (c *compiler) caps(at string, list []string, allToo bool) []string {
	var out []string
	for i, name := range list {
		plain := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		switch {
		case plain == "ALL" && allToo:
		case plain == "ALL":
			c.add(index(at, i), "name the capabilities that the program needs", "all capabilities at once are not given")
			continue
		case !slices.Contains(capabilities, plain):
			c.add(index(at, i), "use a name of capabilities(7), such as NET_ADMIN", "%q is not a capability", clip(name))
			continue
		}
		if !slices.Contains(out, plain) {
			out = append(out, plain)
		}
	}
	slices.Sort(out)
	return out
}

var devicePermissions = regexp.MustCompile(`^[rwm]{1,3}$`)

func (c *compiler) device(at string, d types.DeviceMapping) string {
	target, permissions := d.Target, d.Permissions
	if target == "" {
		target = d.Source
	}
	if permissions == "" {
		permissions = "rwm"
	}
	switch {
	case !strings.HasPrefix(d.Source, "/dev/") || path.Clean(d.Source) != d.Source:
		c.add(at, "write a device node of the box, such as /dev/ttyS0", "%q is not a device", clip(d.Source))
	case !path.IsAbs(target) || path.Clean(target) != target || strings.Contains(target, ":"):
		c.add(at, "write the path in the container from the root", "%q is not a device's path", clip(target))
	case !devicePermissions.MatchString(permissions):
		c.add(at, "use letters of rwm (read, write, mknod)", "%q are not permissions", clip(permissions))
	default:
		if slices.ContainsFunc(claimable, func(prefix string) bool { return strings.HasPrefix(d.Source, prefix) }) {
			c.warn(at, "claim it under deploy.resources.reservations.devices", "%s is of hardware that services claim: given here, it may be another's too, and have another number after a restart of the box", clip(d.Source))
		}
		return d.Source + ":" + target + ":" + permissions
	}
	return ""
}

// claimable are the device files of hardware that is given by claims.
var claimable = []string{"/dev/nvidia", "/dev/vfio/", "/dev/dri/renderD", "/dev/kfd", "/dev/infiniband/"}

// namespaced sysctls belong to the container (sysctl(8), namespaces(7)); others would
// change the box.
var namespaced = regexp.MustCompile(`^(net\.[a-zA-Z0-9_./-]+|kernel\.(shm(all|max|mni|_rmid_forced)|msg(max|mnb|mni)|sem)|fs\.mqueue\.[a-z_]+)$`)

func (c *compiler) sysctls(at string, in types.ServiceConfig, s *api.Service) {
	at = join(at, "sysctls")
	for _, name := range keys(in.Sysctls) {
		where := join(at, name)
		switch {
		case !namespaced.MatchString(name) || strings.Contains(name, ".."):
			c.add(where, "use net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*", "%q would change the whole box", clip(name))
			continue
		case in.NetworkMode == "host" && strings.HasPrefix(name, "net."):
			c.add(where, "remove it, or leave the host's network", "%q would change the whole box under network_mode: host", clip(name))
			continue
		}
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[name] = in.Sysctls[name]
	}
}
