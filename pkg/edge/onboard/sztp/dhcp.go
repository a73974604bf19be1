package sztp

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxList bounds the URIs of one option.
const maxList = 16

// ParseList reads the bootstrap servers of DHCP options 143 (IPv4) and 136 (IPv6): URIs,
// each behind its length in two bytes (RFC 8572 section 8.3). It returns roots such as
// https://host:port; what is no such URI is left out, a list that is cut is refused.
func ParseList(option []byte) ([]string, error) {
	var out []string
	for len(option) > 0 {
		if len(option) < 2 {
			return nil, errors.New("DHCP option of bootstrap servers: it is cut")
		}
		n := int(option[0])<<8 | int(option[1])
		if option = option[2:]; n > len(option) {
			return nil, errors.New("DHCP option of bootstrap servers: it is cut")
		}
		if root, ok := rootOf(string(option[:n])); ok {
			if out = append(out, root); len(out) > maxList {
				return nil, errors.New("DHCP option of bootstrap servers: too many")
			}
		}
		option = option[n:]
	}
	return out, nil
}

// ParseServers reads a file of bootstrap servers: one https://host:port a line, what follows # left out. Lines that name
// none are left out too, and are the error.
func ParseServers(text string) (roots []string, err error) {
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for _, word := range strings.Fields(line) {
			root, ok := rootOf(word)
			if !ok {
				errs = append(errs, fmt.Errorf("line %d: %.80q is no https://host:port", i+1, word))
				continue
			}
			roots = append(roots, root)
		}
	}
	if len(roots) == 0 {
		errs = append(errs, errors.New("it names no bootstrap server: want one https://host:port a line"))
	}
	return roots, errors.Join(errs...)
}

// FormatList writes what ParseList reads.
func FormatList(uris []string) (out []byte) {
	for _, u := range uris {
		out = append(out, byte(len(u)>>8), byte(len(u)))
		out = append(out, u...)
	}
	return out
}

// rootOf reads a bootstrap server's URI, of which only host and port count.
func rootOf(text string) (string, bool) {
	if len(text) > 512 || !utf8.ValidString(text) {
		return "", false
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return "", false
	}
	return "https://" + u.Host, true
}
