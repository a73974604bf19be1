package hwprofiles

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

//go:embed *.yaml
var embedded embed.FS

// maxBases bounds how many profiles may stand on each other.
const maxBases = 4

// Load reads one of the embedded profiles. The error is an *api.Error; NotFound names
// those there are.
func Load(name string) (Profile, error) { return LoadFrom(embedded, name) }

// Names lists the embedded profiles, sorted.
func Names() []string { return NamesIn(embedded) }

// All reads every embedded profile, sorted by name.
func All() ([]Profile, error) { return AllFrom(embedded) }

// NamesIn lists the profiles of a folder, sorted.
func NamesIn(dir fs.FS) []string {
	files, err := fs.Glob(dir, "*.yaml")
	if err != nil {
		return nil
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, path.Ext(f))
	}
	slices.Sort(files)
	return files
}

// AllFrom reads every profile of a folder, sorted by name.
func AllFrom(dir fs.FS) ([]Profile, error) {
	var all []Profile
	for _, name := range NamesIn(dir) {
		p, err := LoadFrom(dir, name)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// LoadFrom reads the profile name from name.yaml in dir, on top of its bases, and
// validates the whole.
func LoadFrom(dir fs.FS, name string) (Profile, error) {
	p, lines, err := read(dir, name, nil)
	if err != nil {
		return Profile{}, err
	}
	if err := validate(p, lines); err != nil {
		return Profile{}, inFile(dir, name, err)
	}
	return p, nil
}

// read fills a profile from its file; above are the profiles that stand on it.
func read(dir fs.FS, name string, above []string) (Profile, map[string]int, error) {
	if !api.IsName(name) {
		return Profile{}, nil, &api.Error{Code: api.Invalid, Message: "a profile is not named " + quote(name), Remedy: "use small letters, digits and -"}
	}
	b, err := fs.ReadFile(dir, name+".yaml")
	if errors.Is(err, fs.ErrNotExist) {
		return Profile{}, nil, &api.Error{Code: api.NotFound, Message: "there is no hardware profile " + quote(name), Remedy: "the profiles are " + strings.Join(NamesIn(dir), ", ")}
	}
	if err != nil {
		return Profile{}, nil, &api.Error{Code: api.Internal, Message: "the hardware profile " + quote(name) + " cannot be read", Err: err}
	}
	var own Profile
	lines, err := api.DecodeFile(b, "the profile", &own)
	if err != nil {
		return Profile{}, nil, inFile(dir, name, err)
	}
	if own.Name != "" && own.Name != name {
		return Profile{}, nil, inFile(dir, name, &api.Error{Code: api.Invalid, Field: "name", Line: lines["name"],
			Message: "the name is that of the file, not " + quote(own.Name), Remedy: "leave it out"})
	}
	if own.Base == "" {
		own.Name = name
		return own, lines, nil
	}
	if above = append(above, name); slices.Contains(above, own.Base) || len(above) > maxBases {
		return Profile{}, nil, inFile(dir, name, &api.Error{Code: api.Invalid, Field: "base", Line: lines["base"],
			Message: "the bases " + strings.Join(append(above, own.Base), " → ") + " go round or too deep", Remedy: "let a profile stand on one that has no base"})
	}
	p, _, err := read(dir, own.Base, above)
	var e *api.Error
	if errors.As(err, &e) && len(e.Causes) == 0 { // it is in no file: there is no such base
		e.Field, e.Line = "base", lines["base"]
		return Profile{}, nil, inFile(dir, name, e)
	}
	if err != nil {
		return Profile{}, nil, err
	}
	p.Title, p.Match, p.Base = "", nil, ""
	// Every field was read once already, so this can't fail.
	if _, err = api.DecodeFile(b, "the profile", &p); err != nil {
		return Profile{}, nil, inFile(dir, name, err)
	}
	p.Name = name
	return p, lines, nil
}

// inFile names the file that faults are in; each stays a cause of its own, with line, field and remedy.
func inFile(dir fs.FS, name string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	path := "hwprofiles/" + name + ".yaml"
	if o, ok := dir.(overlay); ok {
		path = o.path(name + ".yaml")
	}
	if len(e.Causes) == 0 {
		return &api.Error{Code: e.Code, Message: path + " has a fault", Causes: []*api.Error{e}}
	}
	return &api.Error{Code: e.Code, Message: fmt.Sprintf("%s has %d faults", path, len(e.Causes)), Causes: e.Causes}
}

func quote(s string) string { return `"` + s[:min(len(s), 60)] + `"` }

// With lays the files of a folder over the embedded profiles: a new one is tried with
// them before it is built in, and may stand on them. Faults name its files by the folder's name.
func With(dir fs.FS, folder string) fs.FS { return overlay{[2]fs.FS{dir, embedded}, folder} }

// overlay opens the first of the files of a name, and lists all names.
type overlay struct {
	dirs   [2]fs.FS
	folder string // as a person calls the first
}

// path says where a file is opened.
func (o overlay) path(file string) string {
	if _, err := fs.Stat(o.dirs[0], file); err != nil {
		return "hwprofiles/" + file
	}
	return filepath.Join(o.folder, file)
}

func (o overlay) Open(name string) (fs.File, error) {
	f, err := o.dirs[0].Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return o.dirs[1].Open(name)
	}
	return f, err
}

// Glob implements fs.GlobFS.
func (o overlay) Glob(pattern string) ([]string, error) {
	var all []string
	for _, dir := range o.dirs {
		names, err := fs.Glob(dir, pattern)
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
