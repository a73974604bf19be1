// Package client answers: where is the core, who is asking, and how does a request
// reach it?
package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v4"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Context is one core that a person speaks with.
type Context struct {
	Server string `yaml:"server" json:"server"`
	Token  string `yaml:"token,omitempty" json:"token,omitempty"`
	// Expires is when the token ends, of a session; zero where that is not known.
	Expires time.Time `yaml:"expires,omitempty" json:"expires,omitzero"`
	// CA is the core's root certificate in PEM; empty trusts the system's roots.
	CA     string `yaml:"ca,omitempty" json:"ca,omitempty"`
	Tenant string `yaml:"tenant,omitempty" json:"tenant,omitempty"`
}

// Config is the file that `edgectl login` writes. It holds tokens: mode 0600.
type Config struct {
	Current  string              `yaml:"current,omitempty" json:"current,omitempty"`
	Contexts map[string]*Context `yaml:"contexts,omitempty" json:"contexts,omitempty"`
}

// Path is where the file lies: EDGECTL_CONFIG, else tributary/edgectl.yaml in the
// user's configuration folder (XDG base directories).
func Path(env func(string) (string, bool)) (string, error) {
	if p, ok := env("EDGECTL_CONFIG"); ok && p != "" {
		return p, nil
	}
	base, _ := env("XDG_CONFIG_HOME")
	if base == "" {
		home, _ := env("HOME")
		if home == "" {
			return "", &api.Error{Code: api.Invalid, Message: "there is no home folder to keep the configuration in", Remedy: "set EDGECTL_CONFIG to a file"}
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "tributary", "edgectl.yaml"), nil
}

const maxConfig = 1 << 20

// Load reads the file; a missing one is an empty configuration.
func Load(path string) (*Config, error) {
	c := &Config{Contexts: map[string]*Context{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the configuration cannot be read", Remedy: "mend " + path, Err: err}
	}
	if len(b) > maxConfig {
		return nil, &api.Error{Code: api.TooLarge, Message: path + " is no configuration of edgectl", Remedy: "remove it and log in again"}
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: path + ": " + err.Error(), Remedy: "mend the file, or remove it and log in again"}
	}
	if c.Contexts == nil {
		c.Contexts = map[string]*Context{}
	}
	for name, ctx := range c.Contexts {
		if ctx == nil {
			delete(c.Contexts, name)
		}
	}
	return c, nil
}

// Save writes the file, readable by its owner alone.
func (c *Config) Save(path string) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if b, err = api.YAML(b); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, b, 0o600)
}
