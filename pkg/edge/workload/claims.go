package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/network"
)

// Claims gives services the hardware that they ask for. What it gave to a service stays
// with it until Retain is told that the service is gone.
type Claims interface {
	// Take answers all claims of a service, or fails with words that say what is missing. It
	// is asked before each start and gives the same devices wherever it can.
	Take(ctx context.Context, app, service string, wanted []api.Claim) ([]api.HeldDevice, error)
	// Retain gives back what all services hold that are not to be kept.
	Retain(ctx context.Context, keep func(app, service string) bool) error
}

// take holds the devices of a service.
func (m *Manager) take(ctx context.Context, key serviceKey, s *api.Service) ([]api.HeldDevice, error) {
	if len(s.Claims) == 0 {
		return nil, nil
	}
	if m.cfg.Claims == nil {
		return nil, api.Errorf(api.Invalid, "the service claims hardware, and this device gives none")
	}
	return m.cfg.Claims.Take(ctx, key.App, key.Service, s.Claims)
}

// giveBack has the hardware given back of services that are not wanted with claims, have
// no container and are not at work. Each is looked at when it is decided on, since a
// service may come to be wanted meanwhile.
func (m *Manager) giveBack(ctx context.Context) error {
	if m.cfg.Claims == nil {
		return nil
	}
	return m.cfg.Claims.Retain(ctx, func(app, service string) bool {
		key := serviceKey{app, service}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.busy[key] {
			return true
		}
		for _, t := range m.instances {
			if t.in.Key == key {
				return true
			}
		}
		return slices.ContainsFunc(m.claimants(), func(name string) bool { return name == key.String() })
	})
}

// claimants names the services that are wanted with claims. m.mu is held.
func (m *Manager) claimants() (names []string) {
	for i := range m.want {
		for _, s := range m.want[i].Services {
			if len(s.Claims) > 0 {
				names = append(names, serviceKey{m.want[i].Name, s.Name}.String())
			}
		}
	}
	return names
}

// ServiceClaims are the claims of one service.
type ServiceClaims struct {
	App, Service string
	Claims       []api.Claim
}

// Claiming lists the services that are wanted with claims, those that wait among them.
func (m *Manager) Claiming() (out []ServiceClaims) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.want {
		for _, s := range m.want[i].Services {
			if len(s.Claims) > 0 {
				out = append(out, ServiceClaims{m.want[i].Name, s.Name, s.Claims})
			}
		}
	}
	return out
}

// Move has a service that runs started anew, since what it holds fails: it then gets other
// devices, or waits for them. It may be called again and again.
func (m *Manager) Move(app, service, reason string) {
	m.mu.Lock()
	found := false
	for _, t := range m.instances {
		if t.in.Key == (serviceKey{app, service}) && t.in.Phase == phaseRunning && t.in.Moved == "" {
			t.in.Moved, found = reason, true
		}
	}
	m.mu.Unlock()
	if found {
		m.poke()
	}
}

// hasLinks tells whether a service claims virtual functions that are interfaces.
func hasLinks(s *api.Service) bool {
	return s.NetworkMode != "host" && slices.ContainsFunc(s.Claims, func(c api.Claim) bool { return c.Class == api.ClaimVF && c.Driver != api.DriverVFIO })
}

// linksOf are the interfaces that go into a container's network.
func linksOf(held []api.HeldDevice) (links []api.DeviceLink) {
	for _, h := range held {
		if h.Edits.Link != nil {
			links = append(links, *h.Edits.Link)
		}
	}
	return links
}

// releaseEnded gives the interfaces of containers back whose processes have ended, however
// they did. It is called by the loop alone, which begins all actions: none begins meanwhile.
func (m *Manager) releaseEnded() {
	m.mu.Lock()
	var ids []string
	for id, t := range m.instances {
		if t.in.Phase != phaseRunning && !t.released && !m.busy[t.in.Key] && hasLinks(&t.svc) {
			t.released = true
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	for _, id := range ids {
		err := m.ended(id)
		if err == nil {
			err = m.net.Release(id)
		}
		if err != nil {
			m.cfg.Log.Warn("an interface does not come back from a container that ended, and is looked for again", "container", id, "err", err)
			m.mu.Lock()
			if t := m.instances[id]; t != nil {
				t.released = false
			}
			m.mu.Unlock()
		}
	}
}

// ended asks containerd whether a container's process has ended: an answer to its start may have
// been lost.
func (m *Manager) ended(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got, err := m.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil && got.Process.Status == tasktypes.Status_RUNNING {
		err = errors.New("its process runs")
	}
	return err
}

// Drain ends the containers of a service, by their signal and grace, and gives their
// interfaces back. The service stays wanted: it is started again when it can be.
func (m *Manager) Drain(ctx context.Context, app, service, reason string) error {
	key := serviceKey{app, service}
	if err := m.seize(ctx, key); err != nil {
		return err
	}
	defer func() {
		m.mu.Lock()
		delete(m.busy, key)
		m.mu.Unlock()
		m.poke()
	}()
	m.mu.Lock()
	var running []string
	for id, t := range m.instances {
		if t.in.Key == key && t.in.Phase == phaseRunning {
			running = append(running, id)
		}
	}
	m.mu.Unlock()
	for _, id := range running {
		if err := errors.Join(m.stop(ctx, action{Verb: doStop, Key: key, ID: id, Reason: reason}), m.net.Release(id)); err != nil {
			return err
		}
	}
	return nil
}

// Runs tells whether a service has a container whose process runs, or is at work on one. It is
// not known before containerd was asked.
func (m *Manager) Runs(app, service string) (runs, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[serviceKey{app, service}] {
		return true, true // what it was given goes into a container at this moment
	}
	for _, t := range m.instances {
		if t.in.Key == (serviceKey{app, service}) && t.in.Phase == phaseRunning {
			return true, true
		}
	}
	return false, m.listed
}

// seize waits until nothing is under way for a service, and keeps it so.
func (m *Manager) seize(ctx context.Context, key serviceKey) error {
	for {
		m.mu.Lock()
		if !m.busy[key] {
			m.busy[key] = true
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Links is where interfaces of hardware go: package network.
func (m *Manager) Links() *network.Manager { return m.net }

// madeWith names what the hardware of a container means, and what it has of the box without a
// claim: all that is written into it when it is made. Another name needs another container:
// after a reboot a device of the same name may have another number, which then is somebody
// else's. It is a digest, since what is written on containers is short.
func madeWith(held []api.HeldDevice, r rest) string {
	if len(held) == 0 && len(r.CPUs) == 0 {
		return ""
	}
	type one struct {
		Class   api.ClaimClass
		ID      string
		Units   int
		Edits   api.DeviceEdits
		CPU     *int
		NUMA    int
		Pages   int64
		Link    bool
		Numbers []uint64
	}
	var list []one
	for _, h := range held {
		e := &h.Edits
		o := one{h.Class, h.ID, h.Units, *e, e.CPU, e.NUMA, e.HugePages, e.Link != nil, nil}
		for _, n := range e.Nodes {
			var st unix.Stat_t
			_ = unix.Stat(hostPath(n), &st) // what is not there has no number
			o.Numbers = append(o.Numbers, st.Rdev)
		}
		list = append(list, o)
	}
	raw, err := json.Marshal(struct {
		Held []one
		CPUs []int
	}{list, r.CPUs})
	if err != nil {
		return "" // unreachable: plain values
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

func hostPath(n api.DeviceNode) string { return firstOf(n.HostPath, n.Path) }

// setDevices gives a container what its service holds, and bounds it to that and the rest.
func setDevices(ctx context.Context, c *containers.Container, spec *specs.Spec, held []api.HeldDevice, r rest) error {
	var cpus, nodes []int
	var env []string
	for _, h := range held {
		e := &h.Edits
		env = append(env, e.Env...)
		for _, n := range e.Nodes {
			if err := setNode(ctx, c, spec, n); err != nil {
				return err
			}
		}
		for _, b := range e.Mounts {
			setMount(spec, b)
		}
		if e.CPU != nil {
			cpus = append(cpus, *e.CPU)
		}
		if (e.CPU != nil || e.HugePages > 0) && e.NUMA >= 0 && !slices.Contains(nodes, e.NUMA) {
			nodes = append(nodes, e.NUMA)
		}
		if h.Class == api.ClaimVF && (e.Link == nil || len(e.Nodes) > 0) {
			setPinnable(spec)
		}
		if e.HugePages > 0 {
			setHugePages(spec, e.PageSize, e.HugePages)
		}
	}
	spec.Process.Env = withEnv(spec.Process.Env, env)
	if len(cpus) > 0 || r.Nodes && len(nodes) > 0 {
		if spec.Linux.Resources.CPU == nil {
			spec.Linux.Resources.CPU = &specs.LinuxCPU{}
		}
		// Pages are of a node: who may not use that node's memory cannot use them, and who may
		// use another's takes those that somebody else holds.
		spec.Linux.Resources.CPU.Cpus, spec.Linux.Resources.CPU.Mems = numbers(cpus), numbers(nodes)
	}
	r.bound(spec)
	return nil
}

// setNode adds a device file, once. It belongs to the container's own user, since what is
// root's on the box is of no use to who is not.
func setNode(ctx context.Context, c *containers.Container, spec *specs.Spec, n api.DeviceNode) error {
	if slices.ContainsFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == n.Path }) {
		return nil // two cards have some in common
	}
	before := len(spec.Linux.Devices)
	if err := oci.WithDevices(hostPath(n), n.Path, firstOf(n.Permissions, "rwm"))(ctx, nil, c, spec); err != nil {
		return err
	}
	if user := spec.Process.User; user.UID != 0 {
		for i := before; i < len(spec.Linux.Devices); i++ {
			spec.Linux.Devices[i].UID, spec.Linux.Devices[i].GID = &user.UID, &user.GID
		}
	}
	return nil
}

// setMount adds a file or folder of the box, once.
func setMount(spec *specs.Spec, b api.DeviceBind) {
	if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == b.ContainerPath && m.Source == b.HostPath }) {
		return // two cards have the driver's libraries in common
	}
	options := b.Options
	if len(options) == 0 {
		options = []string{"rbind", "rprivate", "nosuid", "nodev", "ro"}
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: b.ContainerPath, Type: "bind", Source: b.HostPath, Options: options})
}

// withEnv lays the variables of devices over a container's own. Several devices of one kind
// give the same variable: their values are a list with commas, as CUDA and DPDK read it.
func withEnv(own, devices []string) []string {
	var names []string
	values := map[string][]string{}
	for _, kv := range devices {
		name, value, _ := strings.Cut(kv, "=")
		if values[name] == nil {
			names = append(names, name)
		}
		if !slices.Contains(values[name], value) {
			values[name] = append(values[name], value)
		}
	}
	out := slices.DeleteFunc(slices.Clone(own), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return values[name] != nil
	})
	for _, name := range names {
		out = append(out, name+"="+strings.Join(values[name], ","))
	}
	return out
}

// setPinnable lets a program pin the memory that its device writes to: what vfio maps for
// a device counts as locked (Linux, Documentation/driver-api/vfio.rst), and so does what is
// registered for RDMA. A service that
// bounds it itself keeps its bound.
func setPinnable(spec *specs.Spec) {
	if !slices.ContainsFunc(spec.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_MEMLOCK" }) {
		const unlimited = 1<<64 - 1
		spec.Process.Rlimits = append(spec.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_MEMLOCK", Soft: unlimited, Hard: unlimited})
	}
}

// setHugePages adds to a container's limit of pages of one size ("2M"; runc wants "2MB"),
// and mounts them: the first size at /dev/hugepages, where programs look for it, another at
// /dev/hugepages-1G.
func setHugePages(spec *specs.Spec, size string, bytes int64) {
	limits := &spec.Linux.Resources.HugepageLimits
	for i := range *limits {
		if (*limits)[i].Pagesize == size+"B" {
			(*limits)[i].Limit += uint64(bytes)
			return
		}
	}
	target := "/dev/hugepages"
	if len(*limits) > 0 {
		target += "-" + size
	}
	*limits = append(*limits, specs.LinuxHugepageLimit{Pagesize: size + "B", Limit: uint64(bytes)})
	user := spec.Process.User // the folder is its own: it may be nobody the box knows
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: target, Type: "hugetlbfs", Source: "hugetlbfs",
		Options: []string{"nosuid", "nodev", "pagesize=" + size, "mode=0770", fmt.Sprintf("uid=%d", user.UID), fmt.Sprintf("gid=%d", user.GID)}})
}

// numbers writes a list as cpuset(7) reads it.
func numbers(list []int) string {
	slices.Sort(list)
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}
