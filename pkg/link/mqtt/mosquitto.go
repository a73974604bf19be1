package mqtt

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
)

// Files of a Mosquitto that carries the core's link, in one folder. Its user must be able
// to write there: the plugin replaces MosquittoDynsec whenever a device comes or goes.
const (
	MosquittoConf   = "mosquitto.conf"
	MosquittoDynsec = "dynamic-security.json"
	MosquittoRoot   = "root.crt" // the core's root certificate
	MosquittoServer = "tls.pem"  // a key and certificate of the core's, to serve with
)

// MosquittoConfig is what mosquitto.conf depends on.
type MosquittoConfig struct {
	Dir    string // absolute, of the files above
	Listen string // [host]:port
	Plugin string // path of mosquitto_dynamic_security.so
	User   string // whom Mosquitto becomes when root starts it
}

// Conf is mosquitto.conf (mosquitto.conf(5)).
func (m MosquittoConfig) Conf() ([]byte, error) {
	host, port, err := net.SplitHostPort(m.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", m.Listen, err)
	}
	for _, v := range []string{m.Dir, m.Plugin, m.User, host, port} {
		if strings.ContainsAny(v, "\r\n") {
			return nil, fmt.Errorf("a line break in %q", v)
		}
	}
	file := func(name string) string { return filepath.Join(m.Dir, name) }
	lines := []string{
		"# Written by `cored mosquitto-config`.",
		"per_listener_settings false",
		"plugin " + m.Plugin,
		"plugin_opt_config_file " + file(MosquittoDynsec),
		strings.TrimRight("listener "+port+" "+host, " "),
		"cafile " + file(MosquittoRoot),
		"certfile " + file(MosquittoServer),
		"keyfile " + file(MosquittoServer),
		"# A client is its certificate's common name and nobody else.",
		"require_certificate true",
		"use_identity_as_username true",
		"use_username_as_clientid true",
		fmt.Sprintf("max_packet_size %d", 1400000), // of the protocol; a frame has its own bound
		"max_keepalive 65535",
		"# What waits for a client is bounded in bytes: the core takes bursts. No bound on messages",
		"# would be 0, at which 2.0 drops whoever publishes what it may not.",
		"max_queued_messages 100000",
		fmt.Sprintf("max_queued_bytes %d", 4*defaultQueue),
		"# Nothing relies on what a broker keeps.",
		"persistence false",
		"set_tcp_nodelay true",
		"user " + m.User,
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

// DynsecList is the plugin's file: all is denied, the core, known by its certificate, may
// administer the plugin and speak with devices, and each device may speak with the core.
func DynsecList(devices ...api.DeviceID) []byte {
	const control = "$CONTROL/dynamic-security/#"
	type client struct {
		Username string    `json:"username"`
		Roles    []roleRef `json:"roles"`
	}
	type role struct {
		Rolename string `json:"rolename"`
		ACLs     []acl  `json:"acls"`
	}
	acls := append([]acl{allow("publishClientSend", control), allow("subscribePattern", control), allow("publishClientReceive", control)}, coreACLs()...)
	clients, roles := []client{{identity.CoreName, []roleRef{{coreRole}}}}, []role{{coreRole, acls}}
	for _, id := range devices {
		clients = append(clients, client{id.String(), []roleRef{{deviceRole(id)}}})
		roles = append(roles, role{deviceRole(id), deviceACLs(id)})
	}
	b, err := json.Marshal(map[string]any{
		"defaultACLAccess": map[string]bool{"publishClientSend": false, "publishClientReceive": false, "subscribe": false, "unsubscribe": true},
		"clients":          clients,
		"roles":            roles,
	})
	if err != nil {
		panic(err) // names and truths do marshal
	}
	return append(b, '\n')
}

// FindDynsec finds the plugin where distributions put it; empty when it is not there.
func FindDynsec() string {
	for _, glob := range []string{"/usr/lib/*/mosquitto_dynamic_security.so", "/usr/lib*/mosquitto_dynamic_security.so", "/usr/local/lib*/mosquitto_dynamic_security.so"} {
		if found, _ := filepath.Glob(glob); len(found) > 0 { // a constant pattern is not malformed
			return found[0]
		}
	}
	return ""
}
