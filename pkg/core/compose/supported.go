package compose

import (
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

type verdict int

const (
	accept verdict = iota
	ignore         // with a warning; the note says why
	refuse         // the note is the remedy
)

type rule struct {
	verdict verdict
	note    string
}

func rules(accepted string, others ...map[string]rule) map[string]rule {
	m := map[string]rule{}
	for _, k := range strings.Fields(accepted) {
		m[k] = rule{}
	}
	for _, o := range others {
		for k, r := range o {
			m[k] = r
		}
	}
	return m
}

func no(pairs ...string) map[string]rule    { return verdicts(refuse, pairs) }
func quiet(pairs ...string) map[string]rule { return verdicts(ignore, pairs) }

func verdicts(v verdict, pairs []string) map[string]rule {
	m := map[string]rule{}
	for i := 0; i+1 < len(pairs); i += 2 {
		for _, k := range strings.Fields(pairs[i]) {
			m[k] = rule{v, pairs[i+1]}
		}
	}
	return m
}

const (
	cgroupRemedy  = "use deploy.resources.limits (cpus, memory, pids)"
	isolateRemedy = "a container keeps its own namespaces; use network_mode: host, devices or cap_add for what it needs"
)

// supported maps each mapping of the Compose file (names as *, items as []) to what
// its keys mean here. A mapping that is not listed is taken as it is. The order of
// truth is the compose-spec of compose-go 2.16.
var supported = map[string]map[string]rule{
	"": rules("services networks volumes configs secrets",
		quiet("version", "the Compose format has no versions any more", "name", "the app is named by its App object"),
		no("include", "put all services into one file", "models", "run the model server as a service", "jobs", "make it a service with restart: \"no\"")),

	"services.*": rules(`image command entrypoint environment env_file ports volumes configs secrets depends_on
		healthcheck restart deploy networks network_mode cap_add cap_drop devices user read_only tmpfs ulimits sysctls
		profiles working_dir hostname labels stop_signal stop_grace_period mem_limit mem_reservation cpus
		pids_limit extends scale security_opt cpu_period cpu_quota init gpus`,
		quiet("logging log_driver log_opt", "logs are kept in a bounded ring on the device; read them with `edgectl logs`",
			"container_name", "containers are named by app and service",
			"pull_policy pull_refresh_after", "images are pinned by digest when the app is applied",
			"expose", "services of one network reach each other on every port",
			"attach", "it concerns the terminal of docker compose",
			"annotations", "annotations stay with the App object",
			"platform", "the device's own architecture is taken from the image index",
			"cpu_shares", "shares compare containers of one Docker host",
			"develop", "it concerns the developer's machine",
			"oom_score_adj", "the device decides what it ends first when memory is short"),
		no("build", "build the image, push it with `edgectl app push`, and name it in image",
			"dockerfile", "build the image, push it with `edgectl app push`, and name it in image",
			"links external_links", "services of one network reach each other by name; remove it",
			"privileged", "name what the container needs in cap_add and devices",
			"pid ipc uts userns_mode cgroup cgroup_parent isolation", isolateRemedy,
			"net", "use network_mode or networks",
			"volumes_from", "mount the same named volume in both services",
			"volume_driver", "use a named volume",
			"runtime", "every container runs under the device's own runtime",
			"group_add", "run as a user of that group: user: \"uid:gid\"",
			"dns dns_search dns_opt domainname", "put the file /etc/resolv.conf into a config and mount it",
			"extra_hosts", "put the file /etc/hosts into a config and mount it",
			"mac_address", "addresses are given by the device",
			"shm_size", "mount it: tmpfs: [\"/dev/shm:size=64m\"]",
			"mem_swappiness memswap_limit", "devices do not swap; use mem_limit",
			"oom_kill_disable", cgroupRemedy,
			"cpuset cpu_count cpu_percent cpu_rt_period cpu_rt_runtime blkio_config device_cgroup_rules storage_opt", cgroupRemedy,
			"credential_spec", "it concerns Windows containers",
			"label_file", "write the labels into labels",
			"stdin_open tty", "use `edgectl exec -it` for a terminal in the container",
			"pre_start post_start pre_stop", "run it as a service of its own and order it with depends_on",
			"provider models use_api_socket", "run it as a service from an image",
			"umask", "set it in the container's entrypoint")),

	"services.*.deploy": rules("mode replicas resources restart_policy",
		quiet("labels", "labels of the container stand in labels", "update_config", "a device replaces one container after the other and keeps the old one until the new one is healthy",
			"endpoint_mode", "it concerns swarms"),
		no("placement", "choose devices by the selector of a Fleet", "rollback_config", "apply the former file")),
	"services.*.deploy.resources":                        rules("limits reservations"),
	"services.*.deploy.resources.limits":                 rules("cpus memory pids"),
	"services.*.deploy.resources.reservations":           rules("memory devices", quiet("cpus", "processor time is shared by demand; a processor of its own is a device of capability cpu"), no("generic_resources", "write it as an entry of devices")),
	"services.*.deploy.resources.reservations.devices[]": rules("capabilities driver count device_ids options"),
	"services.*.deploy.restart_policy":                   rules("condition max_attempts", quiet("delay window", "restarts back off by the device's own schedule")),
	"services.*.healthcheck":                             rules("test interval timeout retries start_period disable", quiet("start_interval", "interval holds from the start")),
	"services.*.depends_on.*":                            rules("condition required", no("restart", "remove it; a device restarts what changed and nothing else")),
	"services.*.gpus[]":                                  rules("capabilities driver count device_ids options"),
	"services.*.networks.*": rules("ipv4_address ipv6_address interface_name", quiet("priority gw_priority", "the order of networks is their names'"),
		no("aliases", "services reach each other by their service names", "link_local_ips", "addresses are given by the device; reach services by name",
			"mac_address", "a function's address is set by a NetworkPolicy, others' are given by the device", "driver_opts use_service_name_alias", "remove it")),
	"services.*.ports[]":          rules("target published protocol host_ip mode", quiet("name app_protocol", "it is a comment here")),
	"services.*.volumes[]":        rules("type source target read_only bind volume tmpfs", quiet("consistency", "it concerns Docker Desktop"), no("image", "copy the files in the image's own build")),
	"services.*.volumes[].bind":   rules("create_host_path", quiet("selinux", "devices do not run SELinux"), no("propagation recursive", "remove it")),
	"services.*.volumes[].volume": rules("", quiet("nocopy labels", "it has no meaning here"), no("subpath", "mount the whole volume")),
	"services.*.volumes[].tmpfs":  rules("size", no("mode", "set it in the container's entrypoint")),
	"services.*.configs[]":        rules("source target uid gid mode"),
	"services.*.secrets[]":        rules("source target uid gid mode"),
	"services.*.env_file[]":       rules("path required", no("format", "write NAME=value lines")),
	"services.*.extends":          rules("service", no("file", "put both services into one file")),
	"services.*.ulimits.*":        rules("soft hard"),
	"services.*." + extensionKey:  rules("env"),
	"networks.*": rules("driver driver_opts ipam", quiet("name", "networks are named by app", "labels", "they are not kept", "attachable", "it concerns swarms", "enable_ipv4", "networks have IPv4"),
		no("external", "an app's networks are its own; use network_mode: host to reach others", "enable_ipv6", "addresses are given by the device; remove it", "internal", "leave out ports, and filter on the device")),
	"networks.*.ipam":          rules("config", quiet("driver", "addresses are chosen by the device"), no("options", "remove it")),
	"networks.*.ipam.config[]": rules("subnet gateway ip_range", no("aux_addresses", "leave them out of ip_range")),
	"volumes.*": rules("driver", quiet("name", "volumes are named by app", "labels", "they are not kept"),
		no("external", "an app's volumes are its own; declare it here", "driver_opts", "volumes are folders on the device's data partition; remove it")),
	"configs.*": rules("file content environment external name", quiet("labels", "they are not kept"), no("template_driver", "use variables (${NAME}) in content")),
	"secrets.*": rules("external name", quiet("labels", "they are not kept"),
		no("file environment", "apply the value as a Secret object and write external: true; a secret does not belong into an App", "driver driver_opts template_driver", "write external: true and apply a Secret object")),
}

// nearest finds the key that was probably meant.
func nearest(key string, rules map[string]rule) string {
	return api.Nearest(key, slices.DeleteFunc(keys(rules), func(k string) bool { return rules[k].verdict != accept }))
}
