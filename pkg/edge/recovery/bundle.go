package recovery

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/pattern"
)

// maxLog bounds each log in a bundle.
const maxLog = 1 << 20

// Bundle writes a support bundle: a gzipped tar of what the console can see, without keys,
// tokens and secrets. A source that is missing is named in it instead.
func (a *Appliance) Bundle(ctx context.Context, w io.Writer) error {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	now := a.Now()
	add := func(name string, text []byte) error {
		if strings.HasSuffix(name, ".json") {
			text = redactJSON(text)
		} else {
			text = Redact(text)
		}
		if err := out.WriteHeader(&tar.Header{Name: "tributary-support/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: now.Truncate(time.Second), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := out.Write(text)
		return err
	}
	facts, err := json.MarshalIndent(a.Gather(ctx), "", " ")
	if err != nil {
		return err
	}
	errs := []error{add("facts.json", facts)}
	for _, file := range []string{"boot.json", "warnings.json", "uplinks.json", "network-trial.json", "resolv.conf"} {
		errs = append(errs, a.addFile(add, "run/"+file, a.path(a.Run, file)))
	}
	errs = append(errs, a.addFile(add, "state/update.json", a.path(a.State, "update.json")))
	for _, file := range []string{"cmdline", "version", "meminfo", "mounts", "partitions", "modules", "interrupts", "net/route", "net/dev", "net/arp"} {
		errs = append(errs, a.addFile(add, "proc/"+file, a.path("proc", file)))
	}
	logs, _ := filepath.Glob(a.path(a.Run, "log", "*.log*")) // the pattern is well formed
	for _, l := range logs {
		text, err := readEnd(l, maxLog)
		if err != nil {
			text = []byte(reason(err))
		}
		errs = append(errs, add("log/"+filepath.Base(l), text))
	}
	var kernel textBuffer
	_ = a.boxLog("kernel", kernel.say) // its failure is in the file
	errs = append(errs, add("log/kernel.txt", kernel))
	for _, path := range []string{"/usage", "/metrics"} {
		errs = append(errs, a.addAnswer(ctx, add, path))
	}
	return errors.Join(append(errs, out.Close(), zip.Close())...)
}

type textBuffer []byte

func (b *textBuffer) say(line string) { *b = append(append(*b, line...), '\n') }

func (a *Appliance) addFile(add func(string, []byte) error, name, path string) error {
	text, err := readSome(path, maxLog)
	if err != nil {
		return add(name+".missing", []byte(reason(err)+"\n"))
	}
	return add(name, text)
}

func (a *Appliance) addAnswer(ctx context.Context, add func(string, []byte) error, path string) error {
	ctx, cancel := context.WithTimeout(ctx, a.Patience)
	defer cancel()
	resp, err := a.get(ctx, path)
	if err != nil {
		return add("agent"+path+".missing", []byte(reason(err)+"\n"))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxLog))
	if err != nil {
		return add("agent"+path+".missing", []byte(reason(err)+"\n"))
	}
	return add("agent"+path, text)
}

// secrets are shapes that a bundle never carries: join tokens, PEM keys, pairing codes, what stands behind
// "Bearer" or in such a header, and passwords in URLs, up to the last @, since some hold one.
var secrets = []struct {
	shape *pattern.Pattern
	with  string
}{
	{pattern.New(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), "[key removed]"},
	{pattern.New(`\btj1\.[A-Za-z0-9._-]+`), "[token removed]"},
	{pattern.New(`(^|[^0-9A-Za-z-])[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}($|[^0-9A-Za-z-])`), "$1[pairing code removed]$2"},
	{pattern.New(`(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)(\\?"?\s*[=:][ \t]*)[^\r\n"\\]+`), "$1$2[removed]"},
	{pattern.New(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`), "$1 [removed]"},
	{pattern.New(`(?i)([a-z][a-z0-9+.-]*:?//)[^\s@:"'<>]*:[^\s"'<>]*@`), "$1[removed]@"},
}

var (
	// named is a name that says what its value is.
	named = pattern.New(`(?i)^(?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|psk|pwd|private[_-]?key|api[_-]?key|access[_-]?key|credential)[a-z0-9_.-]*|(?:[a-z0-9_.-]*[_.-])?pass)$`)
	// assigned is such a name in a text, up to its value.
	assigned = pattern.New(`(?i)\b(?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|psk|pwd|private[_-]?key|api[_-]?key|access[_-]?key|credential)[a-z0-9_.-]*|(?:[a-z0-9_.-]*[_.-])?pass)\\?["']?[ \t]*[=:][ \t]*`)
)

// Redact removes what looks like a secret; rather too much than one word of it.
func Redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.shape.Regexp().ReplaceAll(text, []byte(s.with))
	}
	var out []byte
	for {
		at := assigned.Regexp().FindIndex(text)
		if at == nil {
			return append(out, text...)
		}
		out = append(out, text[:at[1]]...)
		quote, length := valueAt(text[at[1]:])
		if length > 0 {
			out = append(out, quote+"[removed]"+quote...)
		}
		text = text[at[1]+length:]
	}
}

// valueAt is how long the value is that a text begins with, and its quote: a quoted one ends with
// that, as it is, escaped in another's text, or doubled in YAML's single ones; any other with its line.
// Lists and objects are looked into.
func valueAt(text []byte) (quote string, length int) {
	if i := bytes.IndexAny(text, "\r\n"); i >= 0 {
		text = text[:i]
	}
	for _, quote := range []string{`\"`, `"`, `'`} {
		if !bytes.HasPrefix(text, []byte(quote)) {
			continue
		}
		for i := len(quote); i < len(text); i++ {
			switch {
			case quote == `'` && bytes.HasPrefix(text[i:], []byte(`''`)):
				i++
			case bytes.HasPrefix(text[i:], []byte(quote)):
				return quote, i + len(quote)
			case quote != `'` && text[i] == '\\':
				i += len(quote) // what is escaped; in another's text, twice
			}
		}
		return quote, len(text)
	}
	if len(text) == 0 || text[0] == '{' || text[0] == '[' {
		return "", 0
	}
	return "", len(text)
}

// redactJSON does so within each text of a JSON value, which stays one. What is none is taken as
// text.
func redactJSON(raw []byte) []byte {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil || d.More() {
		return Redact(raw)
	}
	out, err := json.MarshalIndent(redactValue(v), "", " ")
	if err != nil {
		return Redact(raw)
	}
	return append(out, '\n')
}

func redactValue(v any) any {
	switch v := v.(type) {
	case string:
		return string(Redact([]byte(v)))
	case []any:
		for i := range v {
			v[i] = redactValue(v[i])
		}
	case map[string]any:
		for k, inner := range v {
			_, list := inner.([]any)
			_, object := inner.(map[string]any)
			if named.MatchString(k) && !list && !object && inner != nil {
				v[k] = "[removed]"
			} else {
				v[k] = redactValue(inner)
			}
		}
	}
	return v
}
