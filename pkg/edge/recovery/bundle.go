package recovery

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"time"
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
		text = Redact(text)
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

// secrets are shapes that a bundle never carries: join tokens, PEM keys, bearer tokens,
// passwords in URLs, and values beside names that say what they are.
var secrets = []struct {
	shape *regexp.Regexp
	with  string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), "[key removed]"},
	{regexp.MustCompile(`\btj1\.[A-Za-z0-9._-]+`), "[token removed]"},
	{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`), "$1 [removed]"},
	{regexp.MustCompile(`(?i)([a-z][a-z0-9+.-]*://)[^\s/@:"]*:[^\s/@"]*@`), "$1[removed]@"},
	{regexp.MustCompile(`(?i)("?[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|psk|private[_-]?key|api[_-]?key)"?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|[^\s,;}"]+)`), `${1}"[removed]"`},
}

// Redact removes what looks like a secret.
func Redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.shape.ReplaceAll(text, fmt.Append(nil, s.with))
	}
	return text
}
