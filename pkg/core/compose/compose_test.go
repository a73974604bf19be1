package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary.dev/tributary/pkg/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func options() Options {
	return Options{
		AppName: "shop", Variables: map[string]string{"MODE": "blue"},
		Files: map[string]string{"./web.env": "# comment\nFROM_FILE=yes\nMODE=red\nexport X='$raw'\nY=\"a\\nb ${MODE}\"\nZ=plain # tail\n"},
		Resolve: func(ref string) (string, int64, error) {
			repo, digest, found := strings.Cut(ref, "@")
			if !found {
				repo, _, _ = strings.Cut(ref, ":")
				digest = someDigest
			}
			if strings.Contains(repo, "missing") {
				return "", 0, api.Errorf(api.NotFound, "no such image")
			}
			if strings.Contains(repo, "garbled") {
				return "", 0, api.Errorf(api.Invalid, "its config is not JSON")
			}
			if strings.Contains(repo, "broken") {
				return "", 0, api.Errorf(api.Unavailable, "registry down")
			}
			return repo + "@" + digest, 1000, nil
		},
	}
}

// The bundle of a file is what it was yesterday, byte for byte, warnings included.
func TestGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.yaml")
	if len(files) == 0 {
		t.Fatal("no test data")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b, _, err := Load(context.Background(), string(text), options())
			if err != nil {
				t.Fatal(err)
			}
			again, _, err := Load(context.Background(), string(text), options())
			if err != nil {
				t.Fatal(err)
			}
			first, _ := Encode(b)
			second, _ := Encode(again)
			if !bytes.Equal(first, second) {
				t.Fatal("two runs give two bundles")
			}
			var pretty bytes.Buffer
			json.Indent(&pretty, first, "", "  ")
			pretty.WriteByte('\n')
			golden := strings.TrimSuffix(file, ".yaml") + ".json"
			if *update {
				os.WriteFile(golden, pretty.Bytes(), 0o644)
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, pretty.Bytes()) {
				t.Errorf("%s differs; run with -update and read the change:\n%s", golden, pretty.Bytes())
			}
		})
	}
}

// Each refusal names field, line and remedy.
func TestRefused(t *testing.T) {
	web := func(lines ...string) string {
		return "services:\n  web:\n    image: web:1\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	for _, c := range []struct {
		name, in string
		line     int
		field    string
		says     string // of message or remedy
	}{
		{"not a number", web(`cpus: "abc"`), 4, "services.web.cpus", `"abc" is not a number`},
		{"not a number below", web("deploy:", "  resources:", "    limits: {cpus: abc}"), 6, "services.web.deploy.resources.limits.cpus", `"abc" is not a number`},
		{"negative size", web("mem_limit: -5M"), 4, "services.web.mem_limit", "e.g. 64m"},
		{"negative cpus", web(`cpus: "-1"`), 4, "services.web.cpus", "from 0.01"},
		{"negative cpus below", web("deploy:", "  resources:", "    limits: {cpus: '-1'}"), 6, "services.web.deploy.resources.limits.cpus", "from 0.01"},
		{"negative pids", web("pids_limit: -5"), 4, "services.web.pids_limit", "1 to 4194304"},
		{"negative pids below", web("deploy:", "  resources:", "    limits: {pids: -5}"), 6, "services.web.deploy.resources.limits.pids", "1 to 4194304"},
		{"negative size below", web("deploy:", "  resources:", "    limits: {memory: -5M}"), 6, "services.web.deploy.resources.limits.memory", "e.g. 64m"},
		{"size out of range", web("deploy:", "  resources:", "    limits: {memory: 99999999999G}"), 6, "services.web.deploy.resources.limits.memory", "out of range"},
		{"small size", web("mem_limit: 1m"), 4, "services.web.mem_limit", "from 6m"},
		{"negative count", web("healthcheck: {test: [CMD, a], retries: -1}"), 4, "services.web.healthcheck.retries", "out of range"},
		{"not a duration", web("healthcheck: {test: [CMD, a], interval: x}"), 4, "services.web.healthcheck.interval", "e.g. 30s"},
		{"name not of ASCII", "services:\n  größe:\n    image: web:1\n", 2, "services.größe", "cannot be a name"},
		{"user out of range", web(`user: "99999999999:5"`), 4, "services.web.user", "4294967294"},
		{"negative group", web(`user: "1:-5"`), 4, "services.web.user", "is no user"},
		{"services in a list", "services: [a, b]\n", 1, "services", "under its name"},
		{"build", web("build: ."), 4, "services.web.build", "edgectl app push"},
		{"links", web("links: [db]"), 4, "services.web.links", "by name"},
		{"privileged", web("privileged: true"), 4, "services.web.privileged", "cap_add"},
		{"pid host", web("pid: host"), 4, "services.web.pid", "network_mode: host"},
		{"ipc host", web("ipc: host"), 4, "services.web.ipc", "network_mode: host"},
		{"claim without a class", web("deploy:", "  resources:", "    reservations:", "      devices:", "        - {driver: nvidia, capabilities: []}"), 8, "services.web.deploy.resources.reservations.devices[0].capabilities", "name one class"},
		{"claim of an unknown class", web("deploy:", "  resources:", "    reservations:", "      devices:", "        - {capabilities: [tpu]}"), 8, "services.web.deploy.resources.reservations.devices[0].capabilities", "write one of [cpu gpu hugepages vf]"},
		{"claim with an unknown option", web("deploy:", "  resources:", "    reservations:", "      devices:", "        - capabilities: [gpu]", "          options:", "            colour: red"), 10, "services.web.deploy.resources.reservations.devices[0].options.colour", "its options are"},
		{"claim with an odd value", web("deploy:", "  resources:", "    reservations:", "      devices:", "        - capabilities: [gpu]", "          options:", "            memory: much"), 10, "services.web.deploy.resources.reservations.devices[0].options.memory", "write it like 20480"},
		{"claim counted and named", web("deploy:", "  resources:", "    reservations:", "      devices:", "        - {capabilities: [gpu], count: 2, device_ids: [a]}"), 7, "services.web.deploy.resources.reservations.devices", "exclusive"},
		{"function on the host's network", web("network_mode: host", "deploy:", "  resources:", "    reservations:", "      devices:", "        - {capabilities: [vf]}"), 8, "services.web.deploy.resources.reservations.devices", "vfio-pci"},
		{"extra_hosts", web("extra_hosts: ['a:1.2.3.4']"), 4, "services.web.extra_hosts", "config"},
		{"unknown", web("imagee: x"), 4, "services.web.imagee", "did you mean image?"},
		{"unknown top", web() + "service: {}\n", 5, "service", "did you mean services?"},
		{"include", "include: [a.yaml]\n" + web(), 1, "include", "one file"},
		{"extends file", web("extends: {file: b.yaml, service: x}"), 4, "services.web.extends.file", "one file"},
		{"replicas", web("deploy: {replicas: 3}"), 4, "services.web.deploy.replicas", "3 instances"},
		{"scale", web("scale: 2"), 4, "services.web.scale", "2 instances"},
		{"placement", web("deploy:", "  placement: {constraints: [a]}"), 5, "services.web.deploy.placement", "Fleet"},
		{"no image", "services:\n  web:\n    command: x\n", 2, "services.web.image", "no image"},
		{"bad digest", "services:\n  web:\n    image: web@sha256:12\n", 3, "services.web.image", "64 hex digits"},
		{"bad image", "services:\n  web:\n    image: Web:1\n", 3, "services.web.image", "not an image reference"},
		{"other registry", "services:\n  web:\n    image: docker.io/library/nginx\n", 3, "services.web.image", "edgectl app push"},
		{"missing image", "services:\n  web:\n    image: missing:1\n", 3, "services.web.image", "edgectl app push IMAGE.tar missing:1"},
		{"address on a bridge", web("networks:", "  a: {ipv4_address: 192.0.2.1}") + "networks: {a: {}}\n", 5, "services.web.networks.a.ipv4_address", "given by the device"},
		{"options of a bridge", web("networks: [a]") + "networks:\n  a:\n    driver_opts: {mtu: \"9000\"}\n", 7, "networks.a.driver_opts", "given by the device"},
		{"function with an unknown option", web("networks: [a]") + "networks:\n  a:\n    driver: sriov\n    driver_opts: {colour: red}\n", 8, "networks.a.driver_opts.colour", "its options are"},
		{"function with an odd speed", web("networks: [a]") + "networks:\n  a:\n    driver: sriov\n    driver_opts: {speed: fast}\n", 8, "networks.a.driver_opts.speed", "write it like 10000"},
		{"function's address elsewhere", web("networks:", "  a: {ipv4_address: 198.51.100.1}") + "networks:\n  a:\n    driver: sriov\n    ipam: {config: [{subnet: 192.0.2.0/24}]}\n", 5, "services.web.networks.a.ipv4_address", "in no subnet"},
		{"function's subnet", web("networks: [a]") + "networks:\n  a:\n    driver: sriov\n    ipam: {config: [{subnet: here}]}\n", 8, "networks.a.ipam.config[0].subnet", "is no subnet"},
		{"function's MAC", web("networks:", "  a: {mac_address: \"02:00:00:00:00:01\"}") + "networks:\n  a: {driver: sriov}\n", 5, "services.web.networks.a.mac_address", "NetworkPolicy"},
		{"ports of a function", web("ports: [\"80:80\"]", "networks: [a]") + "networks:\n  a: {driver: sriov}\n", 4, "services.web.ports", "published"},
		{"addresses for vfio", web("networks:", "  a: {ipv4_address: 192.0.2.1}") + "networks:\n  a:\n    driver: sriov\n    driver_opts: {driver: vfio-pci}\n    ipam: {config: [{subnet: 192.0.2.0/24}]}\n", 7, "networks.a", "no interface"},
		{"a function named as a bridge's interface", web("networks:", "  a: {interface_name: eth0}", "  b: {}") + "networks:\n  b: {}\n  a: {driver: sriov}\n", 5, "services.web.networks.a.interface_name", "another interface_name"},
		{"a gateway in the range", web("networks: [a, b]") + "networks:\n  b: {}\n  a:\n    driver: sriov\n    ipam: {config: [{subnet: 192.0.2.0/24, gateway: 192.0.2.1, ip_range: 192.0.2.0/27}]}\n", 9, "networks.a.ipam.config[0].ip_range", "the gateway 192.0.2.1"},
		{"a fixed address in the range", "services:\n  web:\n    image: web:1\n    networks: [a]\n  db:\n    image: web:1\n    networks:\n      a: {ipv4_address: 192.0.2.33}\nnetworks:\n  a:\n    driver: sriov\n    ipam: {config: [{subnet: 192.0.2.0/24, ip_range: 192.0.2.32/27}]}\n", 12, "networks.a.ipam.config[0].ip_range", "service db"},
		{"network driver", web("networks: [a]") + "networks:\n  a: {driver: macvlan}\n", 6, "networks.a.driver", "macvlan"},
		{"network external", web("networks: [a]") + "networks:\n  a: {external: true}\n", 6, "networks.a.external", "its own"},
		{"network unknown", web("networks: [a]"), 4, "services.web.networks.a", "no such network"},
		{"aliases", web("networks:", "  a: {aliases: [b]}") + "networks: {a: {}}\n", 5, "services.web.networks.a.aliases", "service names"},
		{"network mode", web("network_mode: service:db"), 4, "services.web.network_mode", "host or none"},
		{"host ports", web("network_mode: host", "ports: ['80:80']"), 5, "services.web.ports", "own ports"},
		{"volume driver", web("volumes: [vol:/a]") + "volumes:\n  vol: {driver: nfs}\n", 6, "volumes.vol.driver", "nfs"},
		{"volume opts", web("volumes: [vol:/a]") + "volumes:\n  vol:\n    driver_opts: {o: bind}\n", 7, "volumes.vol.driver_opts", "data partition"},
		{"volume unknown", web("volumes: [vol:/a]"), 4, "services.web.volumes[0]", `no volume "vol"`},
		{"volume unnamed", web("volumes: [/a]"), 4, "services.web.volumes[0]", "name it"},
		{"bind outside", web("volumes:", "- /etc:/etc:ro"), 5, "services.web.volumes[0]", "outside the app's data"},
		{"bind up", web("volumes: ['../x:/etc']"), 4, "services.web.volumes[0]", "outside the app's data"},
		{"mount proc", web("tmpfs: /proc/x"), 4, "services.web.tmpfs", "belongs to the system"},
		{"mounted twice", web("tmpfs: [/a, '/a:size=1m']"), 2, "services.web", "two mounts"},
		{"secret file", web("secrets: [s]") + "secrets:\n  s: {file: s.txt}\n", 6, "secrets.s.file", "Secret object"},
		{"config unread", web("configs: [s]") + "configs:\n  s: {file: s.txt}\n", 6, "configs.s.file", "did not come along"},
		{"config unknown", web("configs: [s]"), 4, "services.web.configs[0]", "top of the file"},
		{"env_file unread", web("env_file: a.env"), 4, "services.web.env_file", "did not come along"},
		{"variable", web("user: ${WHO}"), 4, "services.web.user", "--set WHO="},
		{"variable nested", web("user: ${A:-${WHO}}"), 4, "services.web.user", "--set WHO="},
		{"variable required", web("user: ${WHO:?say who}"), 4, "services.web.user", "say who"},
		{"variable passed on", web("environment: [TOKEN]"), 4, "services.web.environment.TOKEN", "passed on"},
		{"port clash", web("ports: ['80:80']") + "  b:\n    image: b:1\n    ports: ['127.0.0.1:80:81']\n", 4, "services.web.ports", "published by b too"},
		{"port random", web("ports: ['80']"), 4, "services.web.ports[0]", "8080:80"},
		{"port sctp", web("ports: ['80:80/sctp']"), 4, "services.web.ports[0]", "tcp or udp"},
		{"port wide", web("ports: ['1-60000:1-60000']"), 4, "services.web.ports[0]", "wider"},
		{"port bad", web("ports: ['x:80']"), 4, "services.web.ports[0]", ""},
		{"cycle", web("depends_on: [db]") + "  db:\n    image: b:1\n    depends_on: [cache]\n  cache:\n    image: b:1\n    depends_on: [web]\n", 10, "services.cache.depends_on", "cache → web → db → cache"},
		{"self", web("depends_on: [web]"), 4, "services.web.depends_on", "web → web"},
		{"depends unknown", web("depends_on: [dbx]"), 4, "services.web.depends_on.dbx", "no such service"},
		{"depends disabled", web("depends_on: [db]") + "  db: {image: 'b:1', profiles: [extra]}\n", 4, "services.web.depends_on.db", "profile extra"},
		{"depends unhealthy", web("depends_on: {db: {condition: service_healthy}}") + "  db: {image: 'b:1'}\n", 4, "services.web.depends_on.db", "no health check"},
		{"health empty", web("healthcheck: {interval: 5s}"), 4, "services.web.healthcheck.test", "CMD"},
		{"health bad", web("healthcheck: {test: [RUN, x]}"), 4, "services.web.healthcheck.test", "CMD-SHELL"},
		{"restart", web("restart: sometimes"), 4, "services.web.restart", "on-failure"},
		{"memory", web("mem_limit: 1k"), 4, "services.web.mem_limit", "6m"},
		{"memory twice", web("mem_limit: 64m", "deploy: {resources: {limits: {memory: 32m}}}"), 5, "services.web.deploy.resources.limits.memory", "one place"},
		{"all caps", web("cap_add: [ALL]"), 4, "services.web.cap_add[0]", "name the capabilities"},
		{"no cap", web("cap_add: [FLY]"), 4, "services.web.cap_add[0]", "not a capability"},
		{"device", web("devices: ['/etc/passwd:/x']"), 4, "services.web.devices[0]", "device node"},
		{"sysctl", web("sysctls: {vm.swappiness: 1}"), 4, `services.web.sysctls["vm.swappiness"]`, "whole box"},
		{"seccomp", web("security_opt: ['seccomp:unconfined']"), 4, "services.web.security_opt[0]", "no-new-privileges"},
		{"ulimit", web("ulimits: {files: 3}"), 4, "services.web.ulimits.files", "nofile"},
		{"duplicate", web("user: a", "user: b"), 5, "services.web.user", "given twice"},
		{"tag", web("user: !reset null"), 4, "services.web.user", "tag"},
		{"no services", "services: {}\n", 1, "services", "no service"},
		{"empty", "", 0, "", "empty"},
		{"list", "- a\n", 0, "", "mapping"},
		{"yaml", "services:\n  web: [\n", 2, "", "not valid YAML"},
		{"documents", web() + "---\n" + web(), 0, "", "its own App"},
		{"service name", "services:\n  a__b:\n    image: a:1\n", 2, "services.a__b", "single"},
		{"wrong type", web("ports: 80"), 4, "services.web.ports", ""},
		{"extension", web("x-tributary: {env: web}"), 4, "services.web.x-tributary.env", "list of names"},
		{"all disabled", "services:\n  a: {image: 'a:1', profiles: [p]}\n", 1, "services", "profile"},
		{"tty", web("tty: true"), 4, "services.web.tty", "exec -it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Load(context.Background(), c.in, options())
			e, ok := err.(*api.Error)
			if !ok || e.Code != api.Invalid {
				t.Fatalf("error: %v", err)
			}
			if len(e.Causes) > 0 {
				t.Fatalf("several findings: %v", e)
			}
			if e.Line != c.line || e.Field != c.field || !strings.Contains(e.Message+" "+e.Remedy, c.says) || e.Remedy == "" {
				t.Errorf("got %q (line %d, field %q)\nwant line %d, field %q, %q", e.Error(), e.Line, e.Field, c.line, c.field, c.says)
			}
		})
	}
}

// Every fault of a file is told at once, in the order of the file.
func TestAllAtOnce(t *testing.T) {
	_, warnings, err := Load(context.Background(), `services:
  web:
    build: .
    image: web:1
    privileged: true
    logging: {driver: syslog}
    depends_on: [nobody]
  db:
    image: missing:1
    links: [web]
`, options())
	e, _ := err.(*api.Error)
	if e == nil {
		t.Fatal("accepted")
	}
	var got []string
	for _, f := range e.Causes {
		got = append(got, fmt.Sprintf("%d %s", f.Line, f.Field))
	}
	want := []string{"3 services.web.build", "5 services.web.privileged", "7 services.web.depends_on.nobody", "9 services.db.image", "10 services.db.links"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if len(warnings) != 1 || warnings[0].Field != "services.web.logging" || warnings[0].Line != 6 {
		t.Errorf("warnings: %v", warnings)
	}
}

// Hardware that services claim is warned of where it is taken past the claims.
func TestDevicesThatAreClaimed(t *testing.T) {
	for path, warned := range map[string]bool{"/dev/vfio/12": true, "/dev/nvidia0": true, "/dev/dri/renderD128": true, "/dev/ttyS0": false, "/dev/dri/card0": false} {
		_, warnings, err := Load(context.Background(), "services:\n  web:\n    image: web:1\n    devices: ['"+path+"']\n", options())
		if err != nil {
			t.Fatal(err)
		}
		if got := len(warnings) == 1 && warnings[0].Line == 4 && strings.Contains(warnings[0].Remedy, "reservations.devices"); got != warned || !warned && len(warnings) > 0 {
			t.Errorf("%s: %v", path, warnings)
		}
	}
}

// All variables without value are told at once.
func TestAllVariables(t *testing.T) {
	_, _, err := Load(context.Background(), "services:\n  a:\n    image: a:${TAG}\n    user: $WHO\n", options())
	if e, _ := err.(*api.Error); e == nil || len(e.Causes) != 2 || e.Causes[1].Line != 4 {
		t.Fatalf("error: %v", err)
	}
}

// A registry that does not answer is not the file's fault.
func TestRegistryDown(t *testing.T) {
	_, _, err := Load(context.Background(), "services: {a: {image: 'broken:1'}}", options())
	if api.CodeOf(err) != api.Unavailable {
		t.Fatalf("error: %v", err)
	}
}

func TestProfiles(t *testing.T) {
	text := "services:\n  a: {image: 'a:1'}\n  b: {image: 'b:1', profiles: [x]}\n"
	for profile, want := range map[string]int{"": 1, "x": 2, "*": 2} {
		o := options()
		if profile != "" {
			o.Profiles = []string{profile}
		}
		b, _, err := Load(context.Background(), text, o)
		if err != nil || len(b.Services) != want {
			t.Errorf("profile %q: %v, %v", profile, b, err)
		}
	}
}

func TestRestart(t *testing.T) {
	for in, want := range map[string]api.Restart{
		"":                        {Policy: "on-failure"},
		`restart: "no"`:           {Policy: "no"},
		"restart: always":         {Policy: "always"},
		"restart: unless-stopped": {Policy: "unless-stopped"},
		"restart: on-failure":     {Policy: "on-failure"},
		"restart: on-failure:3":   {Policy: "on-failure", Max: 3},
		"deploy: {restart_policy: {condition: none}}":                        {Policy: "no"},
		"deploy: {restart_policy: {condition: any}}":                         {Policy: "always"},
		"deploy: {restart_policy: {condition: on-failure, max_attempts: 7}}": {Policy: "on-failure", Max: 7},
		"restart: always\n    deploy: {restart_policy: {condition: none}}":   {Policy: "no"},
	} {
		b, _, err := Load(context.Background(), "services:\n  a:\n    image: a:1\n    "+in+"\n", options())
		if err != nil || b.Services[0].Restart != want {
			t.Errorf("%q: %+v, %v", in, b, err)
		}
	}
}

func TestHealth(t *testing.T) {
	load := func(in string) *api.HealthCheck {
		t.Helper()
		b, _, err := Load(context.Background(), "services:\n  a:\n    image: a:1\n    healthcheck: "+in+"\n", options())
		if err != nil {
			t.Fatal(err)
		}
		return b.Services[0].Health
	}
	for in, want := range map[string][]string{
		`{test: "a b"}`:                 {"/bin/sh", "-c", "a b"},
		`{test: [CMD-SHELL, "a || b"]}`: {"/bin/sh", "-c", "a || b"},
		`{test: [CMD, a, b]}`:           {"a", "b"},
	} {
		if got := load(in); got == nil || !slices.Equal(got.Test, want) || got.Retries != 3 || time.Duration(got.Interval) != 30*time.Second {
			t.Errorf("%s: %+v", in, got)
		}
	}
	for _, in := range []string{`{test: [NONE]}`, `{disable: true}`} {
		if got := load(in); got != nil {
			t.Errorf("%s: %+v", in, got)
		}
	}
}

func TestClashes(t *testing.T) {
	app := func(name, ip string, port int, protocol string) *api.Bundle {
		return &api.Bundle{App: name, Services: []api.Service{{Name: "s", Ports: []api.Port{{HostIP: ip, Host: port, Container: 1, Protocol: protocol}}}}}
	}
	got := Clashes([]*api.Bundle{app("c", "", 80, "udp"), app("b", "10.0.0.1", 80, "tcp"), app("a", "", 80, "tcp"), app("d", "10.0.0.2", 81, "tcp"), app("e", "10.0.0.3", 81, "tcp")})
	if len(got) != 1 || got[0].String() != "tcp port 80 of 10.0.0.1 is published by a/s and by b/s" {
		t.Errorf("clashes: %v", got)
	}
}

func TestRefs(t *testing.T) {
	text, _ := os.ReadFile("testdata/web.yaml")
	b, _, err := Load(context.Background(), string(text), options())
	if err != nil {
		t.Fatal(err)
	}
	if o := Refs(b); !slices.Equal(o.Configs, []string{"common-env", "site"}) || !slices.Equal(o.Secrets, []string{"db"}) {
		t.Errorf("refs: %+v", o)
	}
}

// For any graph: an order that respects every dependency, or a real cycle.
func TestTopological(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		services := map[string]*api.Service{}
		for i := range n {
			s := &api.Service{Name: fmt.Sprintf("s%d", i)}
			for _, d := range rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, 3, rapid.ID[int]).Draw(t, "deps") {
				s.DependsOn = append(s.DependsOn, api.Dependency{Service: fmt.Sprintf("s%d", d)})
			}
			services[s.Name] = s
		}
		waits := func(a, b string) bool {
			return slices.ContainsFunc(services[a].DependsOn, func(d api.Dependency) bool { return d.Service == b })
		}
		order, cycle := topological(services)
		if cycle != nil {
			for i, name := range cycle {
				if !waits(name, cycle[(i+1)%len(cycle)]) {
					t.Fatalf("%v is no cycle", cycle)
				}
			}
			return
		}
		if len(order) != n {
			t.Fatalf("%d of %d ordered", len(order), n)
		}
		for i, a := range order {
			for _, b := range order[i:] {
				if waits(a, b) {
					t.Fatalf("%s comes before %s", a, b)
				}
			}
		}
	})
}

// Files made to swell are refused within bounds of time and memory.
func TestHostile(t *testing.T) {
	laughs := "x-a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += "x-" + string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 9) + "]\n"
	}
	double := "A=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
	for c := 'B'; c < 'Z'; c++ {
		double += string(c) + "=$" + string(c-1) + "$" + string(c-1) + "$" + string(c-1) + "\n"
	}
	o := options()
	o.Files = map[string]string{"e": double}
	o.Variables = map[string]string{"V": strings.Repeat("v", 100_000)}
	services := "services: {a: {image: 'a:1', "
	for name, in := range map[string]string{
		"laughs":    laughs + services + "command: *j}}\n",
		"self":      "services: &s {a: *s}\n",
		"deep":      "services: " + strings.Repeat("{a: ", 3000),
		"variables": services + "command: '" + strings.Repeat("$V", 1000) + "'}}",
		"defaults":  services + "command: '" + strings.Repeat("${A:-", 1000) + "'}}",
		"env file":  services + "env_file: e}}",
		"ports":     services + "ports: ['" + strings.Repeat("1-200:1-200','", 5000) + "']}}",
		"wide":      services + "command: [" + strings.Repeat("1,", 200_000) + "]}}",
		"wider":     services + "command: [" + strings.Repeat("1,", 50_000) + "]}}",
		"large":     strings.Repeat("#", maxText+1),
		"quotes":    services + "command: '" + strings.Repeat(`"\`, 100_000) + "'}}",
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, _, err := Load(context.Background(), in, o)
			if c := api.CodeOf(err); c != api.Invalid && c != api.TooLarge {
				t.Fatalf("error: %v", err)
			}
			if took := time.Since(start); took > time.Minute {
				t.Errorf("took %v", took)
			}
			runtime.ReadMemStats(&after)
			// in all, not at once; the race detector empties pools at random and adds half
			if used := after.TotalAlloc - before.TotalAlloc; used > 512<<20 {
				t.Errorf("allocated %d MiB", used>>20)
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		f.Add(string(text))
	}
	f.Add("services: {a: {image: 'a:1', ulimits: {nofile: {soft: '1'}}, ports: [80, '1-2:3-4/udp']}}")
	f.Add("services: {a: {image: a, extends: a, environment: [A, B=], healthcheck: {test: [NONE]}}}\nconfigs: {c: {content: ${X:-}}}")
	f.Fuzz(func(t *testing.T, text string) {
		b, _, err := Load(context.Background(), text, options())
		if err != nil {
			if c := api.CodeOf(err); c == api.Internal {
				t.Fatalf("code %s: %v", c, err)
			}
			return
		}
		first, err := Encode(b)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := Load(context.Background(), text, options())
		if err != nil {
			t.Fatalf("refused the second time: %v", err)
		}
		if second, _ := Encode(again); !bytes.Equal(first, second) {
			t.Fatalf("not deterministic:\n%s\n%s", first, second)
		}
	})
}

// An image that was pushed broken will not get better by waiting.
func TestGarbledImage(t *testing.T) {
	_, _, err := Load(context.Background(), "services: {w: {image: garbled}}", options())
	if api.CodeOf(err) != api.Invalid || !strings.Contains(err.Error(), "services.w.image") || !strings.Contains(err.Error(), "its config is not JSON") || !strings.Contains(err.Error(), "push the image again") {
		t.Error(err)
	}
}

// The words of a reservation become claims; who claims nothing has the bundle that it had.
func TestClaims(t *testing.T) {
	const text = `
services:
  plain: {image: web:1}
  ran:
    image: web:1
    gpus: all
    deploy:
      resources:
        reservations:
          devices:
            - {capabilities: [gpu], driver: nvidia, options: {memory: "20480", sharing: mig, numa: same}}
            - {capabilities: [gpu, utility, compute], driver: nvidia, device_ids: [GPU-1, GPU-2]}
            - {capabilities: [vf], count: 2, options: {physical: "enp3s*"}}
            - {capabilities: [cpu], count: 4, options: {isolated: "true"}}
            - {capabilities: [hugepages], count: 512}
`
	b, _, err := Load(t.Context(), text, options())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range b.Services {
		for _, c := range s.Claims {
			got = append(got, s.Name+": "+c.String())
		}
	}
	want := []string{
		"ran: every × gpu",
		"ran: every × gpu (nvidia, memory 20480, numa same, sharing mig)",
		"ran: 2 × gpu (nvidia, GPU-1, GPU-2)",
		"ran: 2 × vf (physical enp3s*)",
		"ran: 4 × cpu (isolated true)",
		"ran: 512 × hugepages (size 2M)",
	}
	if !slices.Equal(got, want) || b.Version != 2 {
		t.Errorf("version %d:\n%s", b.Version, strings.Join(got, "\n"))
	}
}
