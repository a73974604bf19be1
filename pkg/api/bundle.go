package api

// Bundle is an app as a device runs it: the Compose file resolved, defaulted and
// checked by the core, in deterministic JSON. It travels as an OCI artifact
// (artifact type BundleType, one layer of this JSON) and is named by its digest.
type Bundle struct {
	// Version is 1, or 2 where a service has claims: a device that knows none must not run
	// it without what it asked for.
	Version int    `json:"version"`
	App     string `json:"app"`
	// Services are ordered so that each comes after those it depends on.
	Services []Service `json:"services"`
	// Networks are the app's own bridge networks; a service that names none joins
	// "default".
	Networks []string `json:"networks,omitempty"`
	// Volumes are named volumes; they outlive updates and go with the app.
	Volumes []string `json:"volumes,omitempty"`
	// Warnings tell what the file asked for that has no effect here.
	Warnings []string `json:"warnings,omitempty"`
}

// BundleType is the artifact type and layer media type of a Bundle.
const BundleType = "application/vnd.tributary.app.v1+json"

// Service is one container of an app.
type Service struct {
	Name string `json:"name"`
	// Image is "repository@sha256:…", relative to the core's registry.
	Image string `json:"image"`
	// Entrypoint and Command replace the image's when not nil (Compose rules: an
	// entrypoint without a command clears the image's command).
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	User       string            `json:"user,omitempty"`
	Hostname   string            `json:"hostname,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`

	Ports    []Port   `json:"ports,omitempty"`
	Networks []string `json:"networks,omitempty"`
	// NetworkMode is "", "host" or "none".
	NetworkMode string `json:"networkMode,omitempty"`

	Mounts  []Mount  `json:"mounts,omitempty"`
	Tmpfs   []Tmpfs  `json:"tmpfs,omitempty"`
	Devices []string `json:"devices,omitempty"` // host[:container[:rwm]]
	// Claims are hardware that the service holds for itself while it is wanted.
	Claims []Claim `json:"claims,omitempty"`

	DependsOn []Dependency `json:"dependsOn,omitempty"`
	Health    *HealthCheck `json:"health,omitempty"`
	Restart   Restart      `json:"restart,omitempty"`
	Resources Resources    `json:"resources,omitempty"`
	// StopSignal defaults to the image's, then SIGTERM; StopGrace to 10 s.
	StopSignal string   `json:"stopSignal,omitempty"`
	StopGrace  Duration `json:"stopGrace,omitempty"`

	ReadOnly  bool              `json:"readOnly,omitempty"`
	CapAdd    []string          `json:"capAdd,omitempty"`
	CapDrop   []string          `json:"capDrop,omitempty"`
	Ulimits   []Ulimit          `json:"ulimits,omitempty"`
	Sysctls   map[string]string `json:"sysctls,omitempty"`
	Init      bool              `json:"init,omitempty"`
	EnvConfig []string          `json:"envConfig,omitempty"` // Config objects whose Env is added
}

// Port publishes a container's port on the host.
type Port struct {
	HostIP    string `json:"hostIP,omitempty"`
	Host      int    `json:"host"`
	Container int    `json:"container"`
	Protocol  string `json:"protocol"` // tcp or udp
}

// MountKind says where a mount's content comes from.
type MountKind string

// The kinds of mount.
const (
	MountVolume MountKind = "volume" // Source is a name in Bundle.Volumes
	MountBind   MountKind = "bind"   // Source is a path within the app's own data folder
	MountConfig MountKind = "config" // Source is Config[/file]
	MountSecret MountKind = "secret" // Source is Secret/key
)

// Mount is one file or folder in a container.
type Mount struct {
	Kind     MountKind `json:"kind"`
	Source   string    `json:"source"`
	Target   string    `json:"target"`
	ReadOnly bool      `json:"readOnly,omitempty"`
	// Inline is the content of a Compose config given in the file itself
	// (kind config, Source empty).
	Inline string `json:"inline,omitempty"`
	Mode   uint32 `json:"mode,omitempty"`
	UID    int    `json:"uid,omitempty"`
	GID    int    `json:"gid,omitempty"`
}

// Tmpfs is a memory file system in a container.
type Tmpfs struct {
	Target    string `json:"target"`
	SizeBytes int64  `json:"sizeBytes,omitempty"`
}

// Dependency orders starts.
type Dependency struct {
	Service string `json:"service"`
	// Condition is service_started, service_healthy or service_completed_successfully.
	Condition string `json:"condition"`
}

// HealthCheck is a command run inside the container (exec form).
type HealthCheck struct {
	Test        []string `json:"test"`
	Interval    Duration `json:"interval"`    // default 30s
	Timeout     Duration `json:"timeout"`     // default 30s
	StartPeriod Duration `json:"startPeriod"` // failures within it do not count
	Retries     int      `json:"retries"`     // default 3
}

// Restart is the restart policy: no, always, on-failure, unless-stopped.
type Restart struct {
	Policy string `json:"policy,omitempty"`
	// Max bounds on-failure attempts; 0 is unbounded.
	Max int `json:"max,omitempty"`
}

// Resources are limits and reservations of one container.
type Resources struct {
	// CPUs is in cores (0.5 is half a core).
	CPUs              float64 `json:"cpus,omitempty"`
	MemoryBytes       int64   `json:"memoryBytes,omitempty"`
	MemoryReservation int64   `json:"memoryReservation,omitempty"`
	Pids              int64   `json:"pids,omitempty"`
}

// Ulimit is one resource limit (getrlimit(2)).
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// ConfigData is a Config or an opened Secret as a device holds it.
type ConfigData struct {
	Files map[string][]byte `json:"files,omitempty" cbor:"1,keyasint,omitempty"`
	Env   map[string]string `json:"env,omitempty" cbor:"2,keyasint,omitempty"`
}
