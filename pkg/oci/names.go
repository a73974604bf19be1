package oci

import (
	"net/http"
	"strings"

	"tributary.dev/tributary/pkg/api"
)

// CheckDigest accepts "sha256:" and 64 lower-case hexadecimal digits, nothing else.
func CheckDigest(s string) error {
	hexes, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hexes) != 64 || strings.Trim(hexes, "0123456789abcdef") != "" {
		return &api.Error{Code: api.Invalid, Message: "digest " + quote(s) + " is not sha256 and 64 hexadecimal digits",
			Remedy: "write repository@sha256:…, as the registry prints it after a push"}
	}
	return nil
}

// reserved words end a repository's part of a path. A repository that contains one
// would be read differently by different servers, so none may.
var reserved = map[string]bool{"blobs": true, "manifests": true, "tags": true, "uploads": true, "referrers": true}

// CheckRepo accepts a repository name of the distribution spec, 255 characters at
// most, without a component that is a reserved word of the protocol's paths.
func CheckRepo(s string) error {
	fail := func(why string) error {
		return &api.Error{Code: api.Invalid, Message: "repository " + quote(s) + ": " + why,
			Remedy: "a repository is tenant/name in lower case, digits and single . _ - between them"}
	}
	if s == "" || len(s) > 255 {
		return fail("the name has 1 to 255 characters")
	}
	for part := range strings.SplitSeq(s, "/") {
		if reserved[part] {
			return fail(quote(part) + " is a word of the protocol")
		}
		if !component(part) {
			return fail(quote(part) + " is not a path component")
		}
	}
	return nil
}

// component matches [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* of the distribution spec.
func component(s string) bool {
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alnum(s[i]) {
			i++
			continue
		}
		j := i
		for !alnum(s[j]) {
			j++
		}
		sep := s[i:j]
		if sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
		i = j
	}
	return true
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// CheckTag accepts a tag of the distribution spec.
func CheckTag(s string) error {
	ok := s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = alnum(c) || c >= 'A' && c <= 'Z' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return &api.Error{Code: api.Invalid, Message: "tag " + quote(s) + " is not 1 to 128 letters, digits, _ . -"}
	}
	return nil
}

// Reference is a parsed image reference: [host/]repo[:tag][@digest].
type Reference struct{ Host, Repo, Tag, Digest string }

func (r Reference) String() string {
	s := r.Repo
	if r.Host != "" {
		s = r.Host + "/" + s
	}
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// ParseReference reads an image reference. The first component is a host when it
// holds a dot or a colon or is "localhost", as docker decides it. Nothing is filled
// in: no default host, no "latest".
func ParseReference(s string) (r Reference, err error) {
	if len(s) > 512 {
		return r, api.Errorf(api.TooLarge, "image reference of %d characters; at most 512 are read", len(s))
	}
	rest, digest, pinned := strings.Cut(s, "@")
	if pinned {
		if err := CheckDigest(digest); err != nil {
			return Reference{}, err
		}
	}
	host := ""
	if first, tail, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		host, rest = first, tail
		if strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789.-:[]") != "" {
			return Reference{}, api.Errorf(api.Invalid, "image %s: %s is not a host", quote(s), quote(host))
		}
	}
	repo, tag, tagged := strings.Cut(rest, ":")
	if tagged {
		if err := CheckTag(tag); err != nil {
			return Reference{}, err
		}
	}
	if err := CheckRepo(repo); err != nil {
		return Reference{}, err
	}
	return Reference{Host: host, Repo: repo, Tag: tag, Digest: digest}, nil
}

// ParsePinned reads "repo@sha256:…", the only form in which bundles name images.
func ParsePinned(s string) (repo, digest string, err error) {
	r, err := ParseReference(s)
	if err != nil {
		return "", "", err
	}
	if r.Digest == "" || r.Host != "" || r.Tag != "" {
		return "", "", &api.Error{Code: api.Invalid, Message: "image " + quote(s) + " is not pinned", Remedy: "bundles name images as repository@sha256:…"}
	}
	return r.Repo, r.Digest, nil
}

// RouteKind classes a path below /v2/.
type RouteKind string

// The kinds of path (distribution-spec 1.1, table of end points).
const (
	RouteBase      RouteKind = "base"
	RouteCatalog   RouteKind = "catalog"
	RouteManifest  RouteKind = "manifests"
	RouteBlob      RouteKind = "blobs"
	RouteUpload    RouteKind = "uploads"
	RouteTags      RouteKind = "tags"
	RouteReferrers RouteKind = "referrers"
)

// Route is a parsed path: Reference is a tag or digest for manifests, a digest for
// blobs and referrers, an upload's id (or empty) for uploads.
type Route struct {
	Kind            RouteKind
	Repo, Reference string
}

// ByDigest reports whether the route names its content by digest.
func (r Route) ByDigest() bool { return CheckDigest(r.Reference) == nil }

// Path is the inverse of ParsePath.
func (r Route) Path() string {
	switch r.Kind {
	case RouteBase:
		return "/v2/"
	case RouteCatalog:
		return "/v2/_catalog"
	case RouteTags:
		return "/v2/" + r.Repo + "/tags/list"
	case RouteUpload:
		return "/v2/" + r.Repo + "/blobs/uploads/" + r.Reference
	}
	return "/v2/" + r.Repo + "/" + string(r.Kind) + "/" + r.Reference
}

// ParsePath reads the path of a registry request. Paths that another parser could
// read differently (doubled slashes, dots, reserved words inside a repository) are
// refused, so that what was authorized is what is served.
func ParsePath(path string) (Route, error) {
	if len(path) > 1024 {
		return Route{}, api.Errorf(api.TooLarge, "path of %d characters; at most 1024 are read", len(path))
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case path == "/v2" || ok && rest == "":
		return Route{Kind: RouteBase}, nil
	case !ok:
		return Route{}, api.Errorf(api.NotFound, "%s is not below /v2/", quote(path))
	case rest == "_catalog":
		return Route{Kind: RouteCatalog}, nil
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	route := Route{}
	switch {
	case n >= 3 && parts[n-2] == "tags" && parts[n-1] == "list":
		route = Route{Kind: RouteTags, Repo: strings.Join(parts[:n-2], "/")}
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		route = Route{Kind: RouteUpload, Repo: strings.Join(parts[:n-3], "/"), Reference: parts[n-1]}
		if id := route.Reference; len(id) > 128 || strings.Trim(id, "0123456789abcdefABCDEF-") != "" {
			return Route{}, api.Errorf(api.Invalid, "%s is not an upload", quote(id))
		}
	case n >= 3 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		route = Route{Kind: RouteUpload, Repo: strings.Join(parts[:n-2], "/")}
	case n >= 3 && parts[n-2] == "manifests":
		route = Route{Kind: RouteManifest, Repo: strings.Join(parts[:n-2], "/"), Reference: parts[n-1]}
		if CheckTag(route.Reference) != nil {
			if err := CheckDigest(route.Reference); err != nil {
				return Route{}, err
			}
		}
	case n >= 3 && (parts[n-2] == "blobs" || parts[n-2] == "referrers"):
		route = Route{Kind: RouteKind(parts[n-2]), Repo: strings.Join(parts[:n-2], "/"), Reference: parts[n-1]}
		if err := CheckDigest(route.Reference); err != nil {
			return Route{}, err
		}
	default:
		return Route{}, api.Errorf(api.NotFound, "%s is not a path of the registry protocol", quote(path))
	}
	return route, CheckRepo(route.Repo)
}

// ParseRequest reads the route of a request, and refuses escaped paths: no name of
// the protocol needs escaping, and two readers of one escape may differ.
func ParseRequest(r *http.Request) (Route, error) {
	if r.URL.RawPath != "" {
		return Route{}, api.Errorf(api.Invalid, "escaped path")
	}
	return ParsePath(r.URL.Path)
}

// quote shortens and quotes what a stranger sent.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '"' {
			return '?'
		}
		return r
	}, s) + `"`
}
