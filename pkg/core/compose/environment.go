package compose

import (
	"fmt"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"

	"tributary.dev/tributary/pkg/api"
)

// envBudget bounds all env_files of an app once they are expanded: each line may use
// the ones before it, so that thirty lines could double a value thirty times.
const envBudget = 512 << 10

// environment merges env_file and environment; the latter wins.
func (c *compiler) environment(at string, in types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for i, file := range in.EnvFiles {
		where := join(at, "env_file")
		if _, list := c.lines[index(where, i)]; list {
			where = index(where, i)
		}
		text, ok := c.opts.Files[file.Path]
		if !ok {
			if bool(file.Required) {
				c.add(where, "apply with `edgectl`, which reads the files along, or give it in spec.files", "the content of %q did not come along", clip(file.Path))
			}
			continue
		}
		if err := parseEnv(text, c.vars, env, &c.env); err != nil {
			c.add(where, "write NAME=value lines", "%s, %v", clip(file.Path), err)
		}
	}
	for _, name := range keys(in.Environment) {
		value := in.Environment[name]
		if value == nil {
			if v, ok := c.vars[name]; ok {
				value = &v
			} else if _, fromFile := env[name]; fromFile {
				continue
			} else {
				c.add(join(join(at, "environment"), name), "set it in spec.variables, or write "+clip(name)+": \"\"", "the variable %s is passed on, but has no value", clip(name))
				continue
			}
		}
		if !validEnvName(name) || strings.ContainsRune(*value, 0) {
			c.add(join(join(at, "environment"), name), "use a name without '=' and a value without NUL", "the variable cannot be set")
			continue
		}
		env[name] = *value
	}
	if len(env) == 0 {
		return nil
	}
	return env
}

func validEnvName(s string) bool { return s != "" && !strings.ContainsAny(s, "=\x00 \n\t") }

// envConfigs reads x-tributary: {env: [name, …]}.
func (c *compiler) envConfigs(at string, in types.ServiceConfig) []string {
	ext, ok := in.Extensions[extensionKey]
	if !ok {
		return nil
	}
	at = join(at, extensionKey)
	const remedy = "write x-tributary: {env: [NAME]}, NAME being a Config object"
	m, ok := ext.(map[string]any)
	if !ok {
		c.add(at, remedy, "the field cannot be read")
		return nil
	}
	list, ok := m["env"].([]any)
	if !ok && m["env"] != nil {
		c.add(join(at, "env"), remedy, "this is not a list of names")
		return nil
	}
	var names []string
	for i, v := range list {
		name, _ := v.(string)
		if !api.IsName(name) {
			c.add(index(join(at, "env"), i), remedy, "%q does not name a Config object", clip(fmt.Sprint(v)))
			continue
		}
		names = append(names, name)
	}
	return names
}

// parseEnv reads an env file into env: NAME=value lines, "#" comments, an optional
// "export ", values plain, in single quotes (taken as they are) or in double quotes
// (\n, \t, \", \\, \$ known). Plain and double-quoted values are interpolated from
// vars and from the lines before. budget is what may still be written.
func parseEnv(text string, vars, env map[string]string, budget *int) error {
	line := 1
	for rest := text; rest != ""; {
		at := line
		raw, after, _ := strings.Cut(rest, "\n")
		line++
		assignment := strings.TrimLeft(raw, " \t\r")
		if trimmed := strings.TrimSpace(assignment); trimmed == "" || trimmed[0] == '#' {
			rest = after
			continue
		}
		assignment = strings.TrimPrefix(assignment, "export ")
		name, value, found := strings.Cut(assignment, "=")
		name = strings.TrimSpace(name)
		if !validEnvName(name) {
			return fmt.Errorf("line %d: %q is not a variable's name", at, clip(name))
		}
		if !found {
			v, ok := vars[name]
			if !ok {
				return fmt.Errorf("line %d: the variable %s is passed on, but has no value", at, clip(name))
			}
			env[name], rest = v, after
			continue
		}
		if value = strings.TrimSpace(value); value != "" && (value[0] == '"' || value[0] == '\'') {
			// A quoted value may go on over the next lines: look for its end in what is left.
			tail := rest[strings.IndexByte(rest, '=')+1:]
			tail = tail[strings.IndexByte(tail, value[0]):]
			end := quotedEnd(tail)
			if end < 0 {
				return fmt.Errorf("line %d: the quote is not closed", at)
			}
			stop := len(tail)
			if i := strings.IndexByte(tail[end:], '\n'); i >= 0 {
				stop = end + i
			}
			line += strings.Count(tail[:end], "\n")
			value, after = tail[:stop], strings.TrimPrefix(tail[stop:], "\n")
		}
		rest = after
		v, err := envValue(value, func(n string) (string, bool) {
			if v, ok := vars[n]; ok {
				return v, true
			}
			v, ok := env[n]
			return v, ok
		}, budget)
		if err != nil {
			return fmt.Errorf("line %d: %w", at, err)
		}
		env[name] = v
	}
	return nil
}

// quotedEnd finds the closing quote of a value that starts with one; -1: none yet.
func quotedEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && s[0] == '"':
			i++
		case s[i] == s[0]:
			return i
		}
	}
	return -1
}

func envValue(value string, lookup template.Mapping, budget *int) (string, error) {
	if value != "" && (value[0] == '"' || value[0] == '\'') {
		end := quotedEnd(value)
		if rest := strings.TrimSpace(value[end+1:]); rest != "" && rest[0] != '#' {
			return "", fmt.Errorf("text follows the closing quote")
		}
		quote := value[0]
		value = value[1:end]
		if quote == '\'' {
			*budget -= len(value)
			return value, overdrawn(budget)
		}
		value = strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\"`, `"`, `\\`, `\`, `\$`, "$$").Replace(value)
	} else if i := strings.Index(value, " #"); i >= 0 {
		value = strings.TrimSpace(value[:i])
	}
	refs, ok := references(value)
	if !ok {
		return "", fmt.Errorf("${…} is not closed")
	}
	*budget -= len(value)
	for _, r := range refs {
		v, set := lookup(r.name)
		if r.needed(v, set) {
			return "", fmt.Errorf("the variable %s has no value", clip(r.name))
		}
		*budget -= len(v)
		*budget -= strings.Count(r.rest, "$") * envBudget / 8 // defaults within defaults are dear
	}
	if err := overdrawn(budget); err != nil {
		return "", err
	}
	return template.SubstituteWithOptions(value, lookup, template.WithoutLogging)
}

func overdrawn(budget *int) error {
	if *budget < 0 {
		return fmt.Errorf("the env files hold more than %d bytes", envBudget)
	}
	return nil
}
