package compose

import "slices"

// FileRefs lists the paths that a Compose file refers to, as they are written there:
// env_file of its services and file of its configs. edgectl reads them into
// Options.Files. A file that cannot be read as YAML has none. Paths with variables are
// listed unfilled; they are then reported as not having come along.
func FileRefs(text string) []string {
	f := &findings{}
	dict := scan(text, f)
	var refs []string
	add := func(v any) {
		if s, ok := v.(string); ok && s != "" && !slices.Contains(refs, s) {
			refs = append(refs, s)
		}
	}
	services, _ := dict["services"].(map[string]any)
	for _, name := range keys(services) {
		s, _ := services[name].(map[string]any)
		list, ok := s["env_file"].([]any)
		if !ok {
			list = []any{s["env_file"]}
		}
		for _, e := range list {
			if m, ok := e.(map[string]any); ok {
				e = m["path"]
			}
			add(e)
		}
	}
	configs, _ := dict["configs"].(map[string]any)
	for _, name := range keys(configs) {
		if c, ok := configs[name].(map[string]any); ok {
			add(c["file"])
		}
	}
	return refs
}

// VariableNames lists the variables that a Compose file mentions, defaults or not.
func VariableNames(text string) []string {
	found := map[string]bool{}
	var inText func(s string, depth int)
	inText = func(s string, depth int) {
		refs, _ := references(s)
		for _, r := range refs {
			found[r.name] = true
			if depth < maxNested {
				inText(r.rest, depth+1)
			}
		}
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				if k == "environment" {
					passedOn(e, found)
				}
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		case string:
			inText(v, 0)
		}
	}
	walk(scan(text, &findings{}))
	return keys(found)
}

// passedOn finds "environment: [NAME]", "environment: {NAME: }" and a config's
// "environment: NAME", which take the variable as it is.
func passedOn(v any, found map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				found[k] = true
			}
		}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && validEnvName(s) {
				found[s] = true
			}
		}
	case string:
		found[v] = true
	}
}

// ParseEnvFile reads NAME=value lines: "#" comments, quotes, ${NAME} from vars and
// from the lines before.
func ParseEnvFile(text string, vars map[string]string) (map[string]string, error) {
	env, budget := map[string]string{}, envBudget
	if err := parseEnv(text, vars, env, &budget); err != nil {
		return nil, err
	}
	return env, nil
}

// Line finds the line of a field ("services.web.image") in a Compose file, or of what
// encloses it; 0 when nothing does.
func Line(text, field string) int {
	f := &findings{}
	scan(text, f)
	return f.line(field)
}
