package api

import (
	"time"
)

// The kinds that people write. Later ones (Model, TrainingJob,
// PricePlan, …) join by an entry in the Kinds table.
const (
	KindTenant    = "Tenant"
	KindSite      = "Site"
	KindDevice    = "Device"
	KindFleet     = "Fleet"
	KindApp       = "App"
	KindConfig    = "Config"
	KindSecret    = "Secret"
	KindJoinToken = "JoinToken"
)

// TenantSpec describes an owner of devices and apps.
type TenantSpec struct {
	// Parent is the tenant above it. Empty: platform, the root.
	Parent      string `json:"parent,omitempty"`
	DisplayName string `json:"displayName,omitempty"`
	// Attest says what the TPMs of all its devices have to show; what a fleet says comes on top.
	Attest *AttestSpec `json:"attest,omitempty"`
}

// SiteSpec describes a place where devices stand.
type SiteSpec struct {
	DisplayName string   `json:"displayName,omitempty"`
	Address     string   `json:"address,omitempty"`
	Latitude    *float64 `json:"latitude,omitempty"`
	Longitude   *float64 `json:"longitude,omitempty"`
	// MaxDisrupted is how many of its devices rollouts may interrupt at once, of all together.
	// Default: a quarter of them, and one at least. Never are two of them relays.
	MaxDisrupted int `json:"maxDisrupted,omitempty"`
}

// DeviceSpec is what people decide about one box. Devices are created by enrolment.
type DeviceSpec struct {
	Site string `json:"site,omitempty"`
	// Approved lets the device receive manifests. Enrolment with a token of
	// autoApprove sets it.
	Approved bool `json:"approved,omitempty"`
	// Retired revokes the device for good.
	Retired bool `json:"retired,omitempty"`
	// Parents lists where the device may attach, best first. Empty: where it enrolled.
	Parents  []ParentRef     `json:"parents,omitempty"`
	Settings *DeviceSettings `json:"settings,omitempty"`
}

// ParentRef names one possible parent.
type ParentRef struct {
	// Device is the parent's id, or "core".
	Device string `json:"device"`
	// Address is host or host:port; the port defaults to 8883 for MQTT. HTTPS is
	// reached on the same host, port HTTPSPort.
	Address   string `json:"address"`
	HTTPSPort int    `json:"httpsPort,omitempty"`
}

// DeviceSettings tune a device's loops. Zero values mean the default.
type DeviceSettings struct {
	// MeterInterval is how often a usage record is cut. Default 15m, from 1s to 24h.
	MeterInterval Duration `json:"meterInterval,omitempty"`
	// HealthInterval is how often a relay confirms its subtree. Default 1m, from 1s to 1h.
	HealthInterval Duration `json:"healthInterval,omitempty"`
	// VitalsInterval is how often a box reads its own numbers, to see what is odd about them.
	// Default 10s, from 1s to 1h. It has to see a hundred before it tells of any.
	VitalsInterval Duration `json:"vitalsInterval,omitempty"`
	// SpoolBytes bounds the record spool. Default 256 MiB, at least 1 MiB. A smaller bound
	// gives up at once what no longer fits, least important first; usage is summed, never lost.
	SpoolBytes int64 `json:"spoolBytes,omitempty"`
	// CacheBytes bounds a relay's artifact cache. Default: 80 % of its file system.
	CacheBytes int64 `json:"cacheBytes,omitempty"`
	// UpdateHours are when releases of the system are fetched and tried, in UTC: "22:00-04:30".
	// Empty: at any hour.
	UpdateHours Hours `json:"updateHours,omitempty"`
	// UpdateBytesPerSecond bounds the download of a release. Default: no bound; at least 1024.
	UpdateBytesPerSecond int64 `json:"updateBytesPerSecond,omitempty"`
	// Accelerators say how cards are divided. Default: each is given whole.
	Accelerators []AcceleratorPolicy `json:"accelerators,omitempty"`
	// Uncordon ends what was found wrong with cards up to a time: a person's word that they
	// are well (edgectl device uncordon). Of a device alone, not of a fleet.
	Uncordon []Uncordon `json:"uncordon,omitempty"`
}

// FleetSpec gives apps, configs, secrets and settings to the devices it selects.
type FleetSpec struct {
	Selector Selector `json:"selector"`
	Apps     []string `json:"apps,omitempty"`
	// Placed are apps that run on some of the devices.
	Placed   []Placement     `json:"placed,omitempty"`
	Configs  []string        `json:"configs,omitempty"`
	Secrets  []string        `json:"secrets,omitempty"`
	Settings *DeviceSettings `json:"settings,omitempty"`
	// FlowPolicies are the names of those that the devices' packets follow.
	FlowPolicies []string `json:"flowPolicies,omitempty"`
	// Release names the Release that the devices' system shall be. Empty: they stay as they are.
	Release string `json:"release,omitempty"`
	// Attest says what the devices' TPMs have to show.
	Attest *AttestSpec `json:"attest,omitempty"`
}

// AppSpec is an app in the Compose format (compose-spec), inline or by reference.
// External configs and secrets of the file name Config and Secret objects.
type AppSpec struct {
	// Compose is the file's text. Exactly one of Compose, ComposeFile and Artifact is
	// set.
	Compose string `json:"compose,omitempty"`
	// ComposeFile is the path of the file, relative to the file that this object is
	// read from. edgectl reads it into Compose and Files before it sends the object;
	// the core refuses it.
	ComposeFile string `json:"composeFile,omitempty"`
	// Files holds what the Compose file refers to by path (env_file, file: of
	// configs), by the path as it is written there. edgectl fills it in.
	Files map[string]string `json:"files,omitempty"`
	// Artifact names an app bundle pushed before: "repository@sha256:…".
	Artifact string `json:"artifact,omitempty"`
	// Profiles are the Compose profiles to enable.
	Profiles []string `json:"profiles,omitempty"`
	// Variables fill ${NAME} in the file.
	Variables map[string]string `json:"variables,omitempty"`
}

// ConfigSpec holds files and environment for apps; changes reach running containers.
type ConfigSpec struct {
	Files map[string]string `json:"files,omitempty"`
	Env   map[string]string `json:"env,omitempty"`
}

// SecretSpec holds values that are sealed to each device that needs them. Reads
// never return Data.
type SecretSpec struct {
	Data map[string]string `json:"data,omitempty"`
}

// JoinTokenSpec lets boxes enrol. The secret is shown once, in the reply to create.
type JoinTokenSpec struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Site        string            `json:"site,omitempty"`
	AutoApprove bool              `json:"autoApprove,omitempty"`
	// Uses bounds the number of enrolments; 0 means unbounded until Expires.
	Uses    int        `json:"uses,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
}

// JoinTokenStatus is what the core tells of a token.
type JoinTokenStatus struct {
	Used int `json:"used"`
	// Token is the whole token, present in the reply to create alone.
	Token string `json:"token,omitempty"`
}

// Selector picks objects by label; all conditions must hold. An empty selector
// picks nothing.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
}

// Requirement is one condition of a selector.
type Requirement struct {
	Key string `json:"key"`
	// Operator is In, NotIn, Exists or DoesNotExist.
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// DeviceStatus is what the core knows of a device.
type DeviceStatus struct {
	ID DeviceID `json:"id"`
	// Tier counts from the core: 1 is attached to the core itself; 0 is unknown.
	Tier int `json:"tier,omitempty"`
	// Parent is the device id that the device signed its attachment to, or "core".
	Parent    string      `json:"parent,omitempty"`
	Relay     bool        `json:"relay,omitempty"`
	Addresses []string    `json:"addresses,omitempty"`
	Hardware  *Hardware   `json:"hardware,omitempty"`
	Health    []Warning   `json:"health,omitempty"`
	Apps      []AppStatus `json:"apps,omitempty"`
	Online    bool        `json:"online"`
	LastSeen  *time.Time  `json:"lastSeen,omitempty"`
	Version   string      `json:"version,omitempty"`
	// Desired and Applied are manifest generations: rendered by the core, and the newest of
	// which the device has taken every item and acted upon it. An app that fails by it, or
	// an update that was rejected, is in Apps.
	Epoch   uint64 `json:"epoch,omitempty"`
	Desired uint64 `json:"desired,omitempty"`
	Applied uint64 `json:"applied,omitempty"`
	// Release is the digest of the release that the device runs and has confirmed; empty where no
	// image of ours runs, or nothing was updated yet.
	Release string `json:"release,omitempty"`
	// Capacity is what services can claim of it.
	Capacity []Capacity `json:"capacity,omitempty"`
	// Attestation is what the device's TPM said of the system that runs; nil where none ever did.
	Attestation *Attestation `json:"attestation,omitempty"`
}

// FleetStatus sums up a fleet.
type FleetStatus struct {
	Devices int `json:"devices"`
	// Current counts devices whose applied generation is the desired one.
	Current int `json:"current"`
	// Running counts devices that run all of the fleet's apps; 0 for a fleet without any.
	Running int `json:"running"`
	// Rejected counts devices that rejected an update of one of the fleet's apps.
	Rejected int `json:"rejected,omitempty"`
	// Missing names the fleet's apps that do not exist.
	Missing []string `json:"missing,omitempty"`
	// Placed are the fleet's placements, in their order; Lacking is hardware that its apps
	// wait for.
	Placed  []PlacementStatus `json:"placed,omitempty"`
	Lacking []Lack            `json:"lacking,omitempty"`
}

// AppState is the life of an app or service on a device.
type AppState string

// The states.
const (
	Pending  AppState = "Pending"  // waiting for a dependency or an image
	Pulling  AppState = "Pulling"  // fetching artifacts
	Starting AppState = "Starting" // started, not yet healthy
	Running  AppState = "Running"  // all services run, and are healthy where a check exists
	Backoff  AppState = "Backoff"  // failed; will be restarted
	Failed   AppState = "Failed"   // will not be restarted
	Exited   AppState = "Exited"   // ended with success, by its policy
	Stopping AppState = "Stopping"
)

// AppStatus is the state of one app on one device.
type AppStatus struct {
	Name  string   `json:"name" cbor:"1,keyasint"`
	State AppState `json:"state" cbor:"2,keyasint"`
	// Bundle is the digest of the app bundle in force.
	Bundle   string          `json:"bundle,omitempty" cbor:"3,keyasint,omitempty"`
	Services []ServiceStatus `json:"services,omitempty" cbor:"4,keyasint,omitempty"`
	// Message explains any state but Running.
	Message string `json:"message,omitempty" cbor:"5,keyasint,omitempty"`
	// Rejected is the digest of the wanted bundle when it did not become healthy: of each
	// service that it broke, the version before runs on.
	Rejected string `json:"rejected,omitempty" cbor:"8,keyasint,omitempty"`
	// Taken is the digest of the bundle on which the device has acted wholly, however that
	// went. It is known on the device alone.
	Taken string `json:"-" cbor:"-"`
}

// ServiceStatus is the state of one service's container.
type ServiceStatus struct {
	Name      string   `json:"name" cbor:"1,keyasint"`
	State     AppState `json:"state" cbor:"2,keyasint"`
	Container string   `json:"container,omitempty" cbor:"3,keyasint,omitempty"`
	Restarts  int      `json:"restarts,omitempty" cbor:"4,keyasint,omitempty"`
	ExitCode  *int     `json:"exitCode,omitempty" cbor:"5,keyasint,omitempty"`
	Address   string   `json:"address,omitempty" cbor:"6,keyasint,omitempty"`
	Message   string   `json:"message,omitempty" cbor:"7,keyasint,omitempty"`
	// Lacks says that it waits for hardware that it claims; Message says for which.
	Lacks bool `json:"lacks,omitempty" cbor:"8,keyasint,omitempty"`
}

// Severity orders warnings.
type Severity string

// The severities.
const (
	Info     Severity = "info"
	Degraded Severity = "degraded"
	Critical Severity = "critical"
)

// Warning is one named finding about a device's health. Health is the set of them;
// the empty set is healthy.
type Warning struct {
	// Name is stable and machine-readable, e.g. "disk-full", "state-rebuilt".
	Name     string   `json:"name" cbor:"1,keyasint"`
	Severity Severity `json:"severity" cbor:"2,keyasint"`
	Message  string   `json:"message" cbor:"3,keyasint"`
	// Since is Unix seconds, by the clock of who found it: the device, or the core.
	Since int64 `json:"since" cbor:"4,keyasint"`
	// Remedy tells people what to do.
	Remedy string `json:"remedy,omitempty" cbor:"5,keyasint,omitempty"`
}

// Hardware is what a device found out about itself.
type Hardware struct {
	Arch     string `json:"arch" cbor:"1,keyasint"`
	Vendor   string `json:"vendor,omitempty" cbor:"2,keyasint,omitempty"`
	Product  string `json:"product,omitempty" cbor:"3,keyasint,omitempty"`
	Serial   string `json:"serial,omitempty" cbor:"4,keyasint,omitempty"`
	CPUs     int    `json:"cpus" cbor:"5,keyasint"`
	CPUModel string `json:"cpuModel,omitempty" cbor:"6,keyasint,omitempty"`
	// MemoryBytes and DiskBytes are totals.
	MemoryBytes int64  `json:"memoryBytes" cbor:"7,keyasint"`
	DiskBytes   int64  `json:"diskBytes,omitempty" cbor:"8,keyasint,omitempty"`
	Kernel      string `json:"kernel,omitempty" cbor:"9,keyasint,omitempty"`
	OS          string `json:"os,omitempty" cbor:"10,keyasint,omitempty"`
	NICs        []NIC  `json:"nics,omitempty" cbor:"11,keyasint,omitempty"`
	Cgroup      int    `json:"cgroup,omitempty" cbor:"12,keyasint,omitempty"`
	// Profile is the hardware profile of the image that runs, or of the family that the
	// box was found to be of where no image of ours runs. BetterProfile is another that
	// names the box more exactly than the image's.
	Profile       string `json:"profile,omitempty" cbor:"13,keyasint,omitempty"`
	BetterProfile string `json:"betterProfile,omitempty" cbor:"14,keyasint,omitempty"`
	// Power is what the box's profile says that it draws, for figures of energy where no
	// sensor gives them.
	Power *PowerModel `json:"power,omitempty" cbor:"15,keyasint,omitempty"`
	// TPM is the version of the trusted platform module that the system uses: "2.0".
	TPM string `json:"tpm,omitempty" cbor:"16,keyasint,omitempty"`
}

// PowerModel is a straight line between idle and full use, in watts. GPUIdleW and GPUMaxW
// come on top for each accelerator. Sensors are what is tried before the model: rapl,
// hwmon, ipmi.
type PowerModel struct {
	Sensors  []string `json:"sensors,omitempty" cbor:"1,keyasint,omitempty"`
	IdleW    float64  `json:"idleW" cbor:"2,keyasint"`
	MaxW     float64  `json:"maxW" cbor:"3,keyasint"`
	GPUIdleW float64  `json:"gpuIdleW,omitempty" cbor:"4,keyasint,omitempty"`
	GPUMaxW  float64  `json:"gpuMaxW,omitempty" cbor:"5,keyasint,omitempty"`
}

// NIC is one network interface.
type NIC struct {
	Name string `json:"name" cbor:"1,keyasint"`
	MAC  string `json:"mac,omitempty" cbor:"2,keyasint,omitempty"`
	// Speed is in Mbit/s; 0 when the driver does not tell.
	Speed int `json:"speed,omitempty" cbor:"3,keyasint,omitempty"`
}
