package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/disk/fat"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/pattern"
)

// Settings are CONFIG's tributary.yaml: written by a person, or by whoever held the stick
// or the disk, so nothing in it is trusted beyond "this is what the box may try".
type Settings struct {
	Join   JoinSettings      `json:"join,omitempty"`
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Relay: the box serves children.
	Relay   bool                 `json:"relay,omitempty"`
	Network *api.NetworkSettings `json:"network,omitempty"`
	// Bootstrap are servers that a box without an owner asks besides those of its image
	// (RFC 8572). Nothing is believed for their sake.
	Bootstrap []string `json:"bootstrap,omitempty"`
}

// JoinSettings say where a new box belongs.
type JoinSettings struct {
	Token string `json:"token,omitempty"`
	// Parent is https://host:port, or host:mqtt-port,https-port as edged takes it.
	Parent string `json:"parent,omitempty"`
}

// MaxSettings bounds tributary.yaml in bytes.
const MaxSettings = 64 << 10

// ParseSettings reads tributary.yaml. A file with one fault is refused as a whole: half a
// network configuration is worse than DHCP.
func ParseSettings(text []byte) (Settings, error) {
	var s Settings
	if len(text) > MaxSettings {
		return s, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("tributary.yaml has more than %d bytes", MaxSettings)}
	}
	if _, err := api.DecodeFile(text, "tributary.yaml", &s); err != nil {
		return Settings{}, err
	}
	if err := s.validate(); err != nil {
		return Settings{}, err
	}
	return s, nil
}

func (s *Settings) validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &api.Error{Code: api.Invalid, Field: field, Message: fmt.Sprintf(format, args...)})
	}
	if s.Name != "" && !validName(s.Name) {
		bad("name", "%.80q is no host name: letters, digits and -, at most 63", s.Name)
	}
	if strings.ContainsAny(s.Join.Token, " \t\r\n\x00") || len(s.Join.Token) > 4096 {
		bad("join.token", "is no join token")
	}
	if s.Join.Parent != "" {
		if _, err := ParentFlag(s.Join.Parent); err != nil {
			bad("join.parent", "%v", err)
		}
	}
	if len(s.Bootstrap) > 16 {
		bad("bootstrap", "%d of them, more than 16", len(s.Bootstrap))
	}
	for _, server := range s.Bootstrap {
		if _, err := ParentFlag(server); err != nil || !strings.HasPrefix(server, "https://") {
			bad("bootstrap", "%.80q is no https://host:port", server)
		}
	}
	if len(s.Labels) > 64 {
		bad("labels", "%d of them, more than 64", len(s.Labels))
	}
	for k, v := range s.Labels {
		if !labelWord.MatchString(k) || v != "" && !labelWord.MatchString(v) {
			bad("labels", "%.80q: %.80q is no label: letters, digits, - and _ and ., at most 40", k, v)
		}
	}
	if s.Network != nil {
		errs = append(errs, s.Network.Validate("network."))
	}
	return errors.Join(errs...)
}

// labelWord is a label's key without a prefix, or its value.
var labelWord = pattern.New(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,38}[A-Za-z0-9])?$`)

func validName(s string) bool {
	if len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-') {
			return false
		}
	}
	return true
}

// ParentFlag turns join.parent into edged's --parent: "https://host:port" is the HTTPS side
// of a core or relay with MQTT at its usual port.
func ParentFlag(text string) (string, error) {
	if !strings.Contains(text, "://") {
		if strings.ContainsAny(text, " \t\r\n\x00/") || len(text) > 300 {
			return "", fmt.Errorf("%.80q is no https://host:port", text)
		}
		return text, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" || len(text) > 300 || strings.ContainsAny(u.Host, " \t\r\n\x00,") {
		return "", fmt.Errorf("%.80q is no https://host:port", text)
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return host + ":8883," + port, nil
}

// birthFile is the key and the certificates that a manufacturer gave a box without a TPM.
// On CONFIG they outlive a factory reset. The program that looks for the owner reads them.
const birthFile = "idevid.pem"

// serversFile is where that program finds the servers of the settings.
const serversFile = "bootstrap-servers"

// readConfig reads CONFIG. It is the box's own reader that does, which trusts nothing on the
// partition and needs no driver; the kernel's is for what a person formatted in another way.
func (b *booter) readConfig(context.Context) error {
	b.facts.TokenFile = b.run("join-token") // the agent watches it: the token may come later
	if b.disk == nil {
		return errNoDisk
	}
	node, _, err := b.disk.ByLabel("config")
	if err != nil {
		b.warn(unreadable(err))
		return err
	}
	files, readErr := readVolume(node, "tributary.yaml", birthFile)
	if readErr != nil {
		b.say("config: %v; the kernel is asked", readErr)
		if files, readErr = b.readMounted(node, "tributary.yaml", birthFile); readErr != nil {
			b.warn(unreadable(readErr))
			return readErr
		}
	}
	if birth := files[birthFile]; birth != nil && len(birth) <= MaxSettings {
		if err := os.WriteFile(b.run(birthFile), birth, 0o600); err != nil {
			b.say("config: %v", err)
		}
	}
	text := files["tributary.yaml"]
	if text == nil {
		return nil
	}
	s, err := ParseSettings(text)
	if err != nil {
		b.warn(api.Warning{Name: "config-invalid", Severity: api.Degraded, Message: "tributary.yaml is not used: " + brief(err), Remedy: "correct the file on the partition CONFIG and start the box anew"})
		return errors.New(brief(err))
	}
	b.facts.Settings = s
	if len(s.Bootstrap) > 0 {
		if err := os.WriteFile(b.run(serversFile), []byte(strings.Join(s.Bootstrap, "\n")+"\n"), 0o600); err != nil {
			b.say("config: %v", err)
		}
	}
	if s.Join.Token == "" {
		return nil
	}
	return os.WriteFile(b.facts.TokenFile, []byte(s.Join.Token+"\n"), 0o600)
}

// unreadable is what a person is told of a CONFIG that cannot be read: its settings may be what
// the box needs to reach anybody.
func unreadable(err error) api.Warning {
	return api.Warning{Name: "config-unreadable", Severity: api.Degraded, Message: "the partition CONFIG cannot be read, so its settings are not in force: " + err.Error(),
		Remedy: "type the network's settings in (page Network, Change address), or format the partition anew as FAT32 with the label CONFIG and put tributary.yaml on it"}
}

// brief tells the first faults of many, which stand on a line each: a console has 24.
func brief(err error) string {
	const most = 3
	lines := strings.Split(err.Error(), "\n")
	if len(lines) <= most+1 {
		return err.Error()
	}
	return fmt.Sprintf("%s\nand %d more", strings.Join(lines[:most], "\n"), len(lines)-most)
}

// readVolume reads files at the top of a FAT32 volume, of at most a byte more than settings may
// have. What is not there is not in the map.
func readVolume(node string, names ...string) (map[string][]byte, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	v, err := fat.Open(f, size)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range v.Entries() {
		for _, name := range names {
			if e.Dir || !strings.EqualFold(e.Path, name) || files[name] != nil {
				continue
			}
			c, err := v.OpenFile(e.Path)
			if err != nil {
				return nil, err
			}
			text := make([]byte, min(c.Size(), MaxSettings+1))
			if _, err := io.ReadFull(io.NewSectionReader(c, 0, c.Size()), text); err != nil {
				return nil, err
			}
			files[name] = text
		}
	}
	return files, nil
}

// readMounted is the same by the kernel's driver: CONFIG is mounted, read-only, for as long as
// it takes to read it.
func (b *booter) readMounted(node string, names ...string) (map[string][]byte, error) {
	if b.modules != nil {
		_ = b.modules.Load("vfat", "nls_cp437", "nls_ascii") // the mount tells
	}
	if err := unix.Mount(node, "/config", "vfat", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "iocharset=ascii,umask=077"); err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	files, errs := map[string][]byte{}, []error(nil)
	for _, name := range names {
		text, err := readSome("/config/"+name, MaxSettings+1)
		if err == nil {
			files[name] = text
		} else if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := unix.Unmount("/config", 0); err != nil {
		b.say("config: %v", err)
	}
	return files, errors.Join(errs...)
}

// keepParent remembers where the box attaches, for the day on which CONFIG is empty or
// torn: what has enrolled goes on without it.
func (b *booter) keepParent(context.Context) error {
	const kept = stateDir + "/parent"
	b.facts.Parent = b.facts.Settings.Join.Parent
	if !b.state {
		return nil
	}
	old, err := readSome(kept, 1<<10)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if b.facts.Parent == "" {
		b.facts.Parent = strings.TrimSpace(string(old))
		return nil
	}
	if text := b.facts.Parent + "\n"; text != string(old) {
		return atomicfile.Write(kept, []byte(text), 0o600)
	}
	return nil
}

func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
