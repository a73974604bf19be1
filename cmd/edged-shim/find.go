package main

import "syscall"

const warmKey = `"tributary.dev/warm-shim":"`

// annotation finds where the answer is kept. Within a JSON text an unescaped quote
// stands at the ends of a string alone, so no value can pass for this key.
func annotation(config []byte) string {
	text := string(config)
	for i := 1; i+len(warmKey) <= len(text); i++ {
		if text[i:i+len(warmKey)] != warmKey || text[i-1] == '\\' {
			continue
		}
		value := text[i+len(warmKey):]
		for j := range len(value) {
			switch {
			case value[j] == '"':
				if j > 0 && value[0] == '/' {
					return value[:j]
				}
				return ""
			case value[j] == '\\' || value[j] < ' ':
				return "" // not a path that edged writes
			}
		}
	}
	return ""
}

// socket finds the path in an answer: unix://PATH alone (containerd 1), or as the
// address in a JSON object (containerd 2).
func socket(answer []byte) string {
	text := string(answer)
	from := -1
	switch {
	case len(text) > len(scheme) && text[:len(scheme)] == scheme:
		from = len(scheme)
	case text != "" && text[0] == '{':
		const key = `"address":"` + scheme
		for i := 0; i+len(key) <= len(text); i++ {
			if text[i:i+len(key)] == key {
				from = i + len(key)
				break
			}
		}
	}
	if from < 0 {
		return ""
	}
	to := from
	for to < len(text) && text[to] != '"' && text[to] != '\\' && text[to] > ' ' {
		to++
	}
	if text[0] != '{' && to != len(text) || to == from || text[from] != '/' {
		return ""
	}
	return text[from:to]
}

// listens reports whether a shim takes connections at path.
func listens(path string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	return syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}) == nil
}

// find looks a program up where containerd does: in the PATH, then beside containerd.
func find(name string, argv, env []string) string {
	const key = "PATH="
	for i, a := range argv {
		if a != "-publish-binary" || i+1 == len(argv) {
			continue
		}
		if daemon := argv[i+1]; daemon != "" && daemon[0] == '/' {
			for daemon[len(daemon)-1] != '/' {
				daemon = daemon[:len(daemon)-1]
			}
			env = append(env[:len(env):len(env)], key+daemon[:max(1, len(daemon)-1)])
		}
	}
	for _, e := range env {
		if len(e) < len(key) || e[:len(key)] != key {
			continue
		}
		list := e[len(key):] + ":"
		for from, to := 0, 0; to < len(list); to++ {
			if list[to] != ':' {
				continue
			}
			if to > from && list[from] == '/' {
				path := list[from:to] + "/" + name
				if syscall.Access(path, 1) == nil {
					return path
				}
			}
			from = to + 1
		}
	}
	return ""
}
