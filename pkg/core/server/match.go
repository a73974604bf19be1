package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
)

// etag is the revision of an object as HTTP writes versions (RFC 9110, section 8.8.3).
func etag(o *api.Object) string { return strconv.Quote(strconv.FormatInt(o.Metadata.Revision, 10)) }

// output answers with one object as it is.
func (s *Server) output(ctx context.Context, o *api.Object) *objectOutput {
	return &objectOutput{ETag: etag(o), Body: s.show(ctx, o)}
}

// match holds a write to its If-Match (RFC 9110, section 13.1.1): of the versions that it
// names the object must be at one, which becomes the revision that the write insists on.
func (s *Server) match(ctx context.Context, header []string, key api.Key, revision *int64) error {
	if len(header) == 0 {
		return nil
	}
	obj, err := s.get(ctx, access.Read, key)
	if api.CodeOf(err) == api.NotFound && err != nil {
		return missed(header, wireError{e: public(err)})
	}
	if err != nil {
		return s.fail(err)
	}
	for _, tag := range strings.Split(strings.Join(header, ","), ",") {
		tag = strings.TrimSpace(tag)
		if tag != "*" && tag != etag(obj) {
			continue
		}
		if tag != "*" && *revision != 0 && *revision != obj.Metadata.Revision {
			break // the body or the query names another
		}
		if tag != "*" {
			*revision = obj.Metadata.Revision
		}
		return nil
	}
	return wireError{status: http.StatusPreconditionFailed, e: &api.Error{Code: api.Conflict, Field: "header.If-Match",
		Message: key.Kind + " " + key.Name + " is at revision " + etag(obj) + ", not at " + strings.Join(header, ", "), Remedy: "read it again, and repeat your change with the ETag that came with it"}}
}

// missed makes a failed precondition of a write's refusal when it came with If-Match: the
// object is gone, or was changed between the look and the write.
func missed(header []string, err error) error {
	var e wireError
	if len(header) == 0 || !errors.As(err, &e) {
		return err
	}
	if e.e.Code == api.NotFound && e.e.Field == "" || e.e.Code == api.Conflict && e.e.Field == "metadata.revision" {
		e.status = http.StatusPreconditionFailed
	}
	return e
}
