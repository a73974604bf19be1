package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/compose"
)

// source is one object and where it was read.
type source struct {
	object *api.Object
	file   string
	doc    api.Document
	// compose is where the Compose text was read, and the number of lines before its
	// first in that file.
	composeFile   string
	composeOffset int
}

// sourceOptions say what to read and how.
type sourceOptions struct {
	files     []string
	recursive bool
	// For bare Compose files, and over what the documents say.
	name      string
	profiles  []string
	variables []string // NAME=value
}

const maxFile = 1 << 20

// emptyRemedy tells what to do about input without an object: of a folder the names of the
// files may be why, of a file only what is in it.
func emptyRemedy(names []string) string {
	for _, name := range names {
		if st, err := os.Stat(name); err == nil && st.IsDir() {
			return "files end in .yaml, .yml or .json; -R reads folders within folders"
		}
	}
	return "write at least one document with apiVersion, kind, metadata and spec, or a Compose file with services"
}

// readSources reads every object of files, folders and "-". Compose files become App
// objects; what they refer to by path is read along.
func (a *app) readSources(o sourceOptions) ([]*source, error) {
	vars := map[string]string{}
	for _, v := range o.variables {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return nil, &api.Error{Code: api.Invalid, Field: "--set", Message: fmt.Sprintf("%q sets nothing", v), Remedy: "write --set NAME=value"}
		}
		vars[name] = value
	}
	if len(o.files) == 0 {
		return nil, &api.Error{Code: api.Invalid, Message: "there is nothing to read", Remedy: "name files or folders with -f; - is standard input"}
	}
	var all []*source
	for _, name := range o.files {
		files, err := expand(name, o.recursive)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			list, err := a.readFile(file, o)
			if err != nil {
				return nil, located(err, file, 0)
			}
			all = append(all, list...)
		}
	}
	var faults []*api.Error
	for _, s := range all {
		if s.object.Kind == api.KindApp {
			if err := s.completeApp(o, vars); err != nil {
				faults = append(faults, flatten(err)...)
			}
		}
	}
	if err := api.JoinErrors(faults, "the input"); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, &api.Error{Code: api.Invalid, Message: "there is no object in " + strings.Join(o.files, ", "), Remedy: emptyRemedy(o.files)}
	}
	return all, nil
}

// expand lists the files of a folder, in order of their names.
func expand(name string, recursive bool) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, readFault(name, err)
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != name && !recursive {
				return fs.SkipDir
			}
			return nil
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path))) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, readFault(name, err)
	}
	return files, nil
}

func readFault(name string, err error) error {
	e := &api.Error{Code: api.Invalid, Message: name + " cannot be read", Remedy: "check the path and its permissions", Err: err}
	if errors.Is(err, fs.ErrNotExist) {
		e.Code, e.Message, e.Err = api.NotFound, "there is no file "+name, nil
		e.Remedy = "check the path"
	}
	return e
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, readFault(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, readFault(name, err)
	}
	if len(b) > maxFile {
		return nil, &api.Error{Code: api.TooLarge, Message: name + " is larger than 1 MiB", Remedy: "put large files into an image or a volume"}
	}
	return b, nil
}

func (a *app) readFile(file string, o sourceOptions) ([]*source, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(a.In, maxFile+1)) // Decode refuses what is larger
	} else {
		b, err = readBounded(file)
	}
	if err != nil {
		return nil, err
	}
	if isCompose(b) {
		return []*source{composeSource(file, string(b), o)}, nil
	}
	docs, err := api.DecodeDocuments(b)
	if err != nil {
		return nil, err
	}
	list := make([]*source, len(docs))
	for i, d := range docs {
		list[i] = &source{object: d.Object, file: file, doc: d}
	}
	return list, nil
}

// isCompose tells a bare Compose file from objects: services, and no kind.
func isCompose(b []byte) bool {
	var n yaml.Node
	if len(b) > maxFile || yaml.Unmarshal(b, &n) != nil || len(n.Content) != 1 || n.Content[0].Kind != yaml.MappingNode {
		return false
	}
	found := map[string]bool{}
	for i := 0; i < len(n.Content[0].Content); i += 2 {
		found[n.Content[0].Content[i].Value] = true
	}
	return found["services"] && !found["kind"] && !found["apiVersion"]
}

// composeSource makes an App of a bare Compose file. Its name is --name, else that of
// the file's folder, as docker compose does.
func composeSource(file, text string, o sourceOptions) *source {
	name := o.name
	if name == "" && file != "-" {
		if abs, err := filepath.Abs(file); err == nil {
			name = strings.ToLower(filepath.Base(filepath.Dir(abs)))
		}
	}
	obj := &api.Object{Kind: api.KindApp, Metadata: api.Meta{Name: name}}
	api.SetDefaults(obj)
	s := &source{object: obj, file: file, composeFile: file}
	setSpec(obj, &api.AppSpec{Compose: text})
	return s
}

// located puts a file's name before the findings of an error; offset is added to
// their lines.
func located(err error, file string, offset int) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Causes = nil
	if len(e.Causes) == 0 {
		at := file
		if file == "-" {
			at = "standard input"
		}
		if c.Line > 0 {
			at += fmt.Sprintf(":%d", c.Line+offset)
			c.Line = 0
		}
		if !strings.Contains(c.Message, file) || c.Field != "" {
			if c.Field != "" {
				at += ": " + c.Field
				c.Field = ""
			}
			c.Message = at + ": " + c.Message
		}
	}
	for _, cause := range e.Causes {
		var inner *api.Error
		errors.As(located(cause, file, offset), &inner)
		c.Causes = append(c.Causes, inner)
	}
	return &c
}

func flatten(err error) []*api.Error {
	var e *api.Error
	if !errors.As(err, &e) {
		return []*api.Error{{Code: api.Internal, Message: err.Error(), Err: err}}
	}
	if len(e.Causes) > 0 {
		return e.Causes
	}
	return []*api.Error{e}
}

// completeApp reads the Compose file and what it refers to into the spec, applies
// flags, and checks all of it before anything is sent.
func (s *source) completeApp(o sourceOptions, vars map[string]string) error {
	var spec api.AppSpec
	if err := readSpec(s.object, &spec); err != nil {
		return err
	}
	dir := "."
	if s.file != "-" {
		dir = filepath.Dir(s.file)
	}
	if spec.ComposeFile != "" {
		path := spec.ComposeFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		b, err := readBounded(path)
		if err != nil {
			return located(withField(err, "spec.composeFile", s.doc.Lines["spec.composeFile"]), s.file, 0)
		}
		spec.Compose, spec.ComposeFile = string(b), ""
		s.composeFile, dir = path, filepath.Dir(path)
	} else if s.composeFile == "" {
		// The text of a block starts on the line after "compose: |".
		s.composeFile, s.composeOffset = s.file, s.doc.Lines["spec.compose"]
	}
	if spec.Compose == "" {
		return nil
	}
	if s.composeFile != "-" {
		if err := s.readAlong(&spec, dir); err != nil {
			return located(err, s.composeFile, s.composeOffset)
		}
	}
	for k, v := range vars {
		if spec.Variables == nil {
			spec.Variables = map[string]string{}
		}
		spec.Variables[k] = v
	}
	if len(o.profiles) > 0 {
		spec.Profiles = o.profiles
	}
	setSpec(s.object, &spec)
	if err := api.Validate(s.object); err != nil {
		return located(err, s.file, 0)
	}
	_, _, err := compose.Load(context.Background(), spec.Compose, compose.Options{AppName: s.object.Metadata.Name, Profiles: spec.Profiles, Variables: spec.Variables, Files: spec.Files})
	if err != nil {
		return located(err, s.composeFile, s.composeOffset)
	}
	return nil
}

func withField(err error, field string, line int) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Field, c.Line = field, line
	return &c
}

// readAlong reads the files that the Compose file names into spec.Files, and the
// variables of a .env file beside it, as docker compose does. A file that is not there
// is left to the check that follows, which knows whether it is needed.
func (s *source) readAlong(spec *api.AppSpec, dir string) error {
	for _, path := range compose.FileRefs(spec.Compose) {
		if _, given := spec.Files[path]; given || filepath.IsAbs(path) && !fileExists(path) {
			continue
		}
		at := path
		if !filepath.IsAbs(at) {
			at = filepath.Join(dir, at)
		}
		b, err := readBounded(at)
		if api.CodeOf(err) == api.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if spec.Files == nil {
			spec.Files = map[string]string{}
		}
		spec.Files[path] = string(b)
	}
	b, err := readBounded(filepath.Join(dir, ".env"))
	if api.CodeOf(err) == api.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	fromFile, err := compose.ParseEnvFile(string(b), spec.Variables)
	if err != nil {
		return &api.Error{Code: api.Invalid, Message: filepath.Join(dir, ".env") + ": " + err.Error(), Remedy: "write NAME=value lines"}
	}
	used := compose.VariableNames(spec.Compose)
	for _, name := range used {
		if v, ok := fromFile[name]; ok {
			if _, given := spec.Variables[name]; !given {
				if spec.Variables == nil {
					spec.Variables = map[string]string{}
				}
				spec.Variables[name] = v
			}
		}
	}
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
