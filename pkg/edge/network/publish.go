package network

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// publishes tells whether a container has ports on the host.
func (r *Request) publishes() bool {
	return len(r.Networks) > 0 && slices.ContainsFunc(r.Ports, func(p Port) bool { return p.Host != 0 })
}

func (m *Manager) portmap() map[string]any {
	return map[string]any{"type": "portmap", "backend": m.backend(), "snat": true, "capabilities": map[string]bool{"portMappings": true}}
}

// Move gives the host ports of a container that was attached with Hold to it, and takes
// them from others that have them. New connections find one or the other at every
// moment: of two rules for a port the first one made counts (both of portmap's backends
// append), so the ports move when the older rule goes. Connections that are open stay
// with the container that they were made to. It may be repeated.
func (m *Manager) Move(ctx context.Context, to Request, from []Request) error {
	if err := m.publish(ctx, to); err != nil {
		return err
	}
	for _, r := range from {
		if err := m.unpublish(ctx, r); err != nil {
			return err
		}
	}
	return m.forgetFlows(to)
}

func (m *Manager) publish(ctx context.Context, r Request) error {
	if !r.publishes() {
		return nil
	}
	list, err := m.conf(r, r.Networks[0], true)
	if err != nil {
		return err
	}
	was, err := m.cni.GetNetworkListCachedResult(list, m.runtime(r, 0))
	if err != nil || was == nil {
		return errors.Join(fmt.Errorf("network: publish ports of %s: it is not attached", r.ID), err)
	}
	if m.runPortmap(ctx, "CHECK", r, was) == nil {
		return nil // they are published already; portmap would do it twice
	}
	if err := m.runPortmap(ctx, "ADD", r, was); err != nil {
		return fmt.Errorf("network: publish ports of %s: %w", r.ID, err)
	}
	return nil
}

func (m *Manager) unpublish(ctx context.Context, r Request) error {
	if !r.publishes() {
		return nil
	}
	if err := m.runPortmap(ctx, "DEL", r, nil); err != nil {
		return fmt.Errorf("network: take ports from %s: %w", r.ID, err)
	}
	return nil
}

// runPortmap runs the part of a network's configuration that publishes ports, alone, as
// libcni would (CNI specification 1.0.0, section 3); was is what the other plugins gave.
func (m *Manager) runPortmap(ctx context.Context, command string, r Request, was types.Result) error {
	conf := m.portmap()
	conf["cniVersion"], conf["name"] = cniVersion, BridgeName(r.App, r.Networks[0])
	conf["runtimeConfig"] = map[string]any{"portMappings": r.mappings()}
	if was != nil {
		conf["prevResult"] = was
	}
	b, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	rt := m.runtime(r, 0)
	args := &invoke.Args{Command: command, ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName, Path: m.cfg.Bin}
	path := filepath.Join(m.cfg.Bin, "portmap")
	if command == "ADD" {
		_, err = invoke.ExecPluginWithResult(ctx, path, b, args, nil)
		return err
	}
	return invoke.ExecPluginWithoutResult(ctx, path, b, args, nil)
}

type mapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// mappings are the host ports as portmap takes them.
func (r *Request) mappings() (out []mapping) {
	for _, p := range r.Ports {
		if p.Host != 0 {
			out = append(out, mapping{p.Host, p.Container, cmp.Or(p.Protocol, "tcp"), p.HostIP})
		}
	}
	return out
}

// forgetFlows has the kernel look up anew where datagrams to the moved ports go: a flow
// of UDP that never falls silent would stay with the old container for ever.
func (m *Manager) forgetFlows(r Request) error {
	for _, p := range r.Ports {
		if p.Host == 0 || p.Protocol != "udp" {
			continue
		}
		filter := &netlink.ConntrackFilter{}
		if err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, uint16(p.Host))); err != nil {
			return err
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter); err != nil {
			m.cfg.Log.Warn("flows of UDP to a moved port may go on to the old container", "port", p.Host, "err", err)
		}
	}
	return nil
}
