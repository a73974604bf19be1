package api

// AppObjectStatus is what the core made of an App: the bundle that devices run and
// everything it needs. It is written together with the spec, so it always belongs to
// the object's present generation.
type AppObjectStatus struct {
	// Repo and Bundle name the bundle artifact in the core's registry: repository and
	// "sha256:…" digest of its manifest. Size is that of the bundle layer, in bytes.
	Repo   string `json:"repo"`
	Bundle string `json:"bundle"`
	Size   int64  `json:"size,omitempty"`
	// Images are the pinned images of its services, each once, ordered by name.
	Images []AppImage `json:"images,omitempty"`
	// Services are the names of its services, in start order.
	Services []string `json:"services,omitempty"`
	// Configs and Secrets are the names of the objects that the file calls external.
	Configs []string `json:"configs,omitempty"`
	Secrets []string `json:"secrets,omitempty"`
	// Claims is the hardware that services ask for, by their names.
	Claims map[string][]Claim `json:"claims,omitempty"`
	// Warnings tell what the file asked for that has no effect.
	Warnings []string `json:"warnings,omitempty"`
}

// AppImage is one image of an app.
type AppImage struct {
	Repo   string `json:"repo"`
	Digest string `json:"digest"` // "sha256:…"
	// Size is what a device fetches when it has nothing: the sum of config and layers,
	// in bytes; 0 when unknown.
	Size int64 `json:"size,omitempty"`
}
