package onboard

import (
	"encoding/json"
	"encoding/xml"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/identity/voucher"
)

// input is a request's body in one of RESTCONF's two forms, which are named by their media types.
type input struct {
	form string // empty: neither
	body []byte
}

func (in input) read(v any) error {
	if in.form == voucher.MediaTypeXML {
		return voucher.ReadInputXML(in.body, v)
	}
	return voucher.ReadInput(in.body, v)
}

func write(form string, a *voucher.Answer) ([]byte, error) {
	if form == voucher.MediaTypeXML {
		return voucher.OutputXML(a)
	}
	return voucher.Output(a)
}

func formOf(contentType string) string {
	kind, _, err := mime.ParseMediaType(contentType)
	if err == nil && (kind == voucher.MediaType || kind == voucher.MediaTypeXML) {
		return kind
	}
	return ""
}

// accepted is the form of an answer: the one that the Accept header likes best, of two that it likes as much that of
// the request (RFC 8040 section 5.2). Where it lets neither through, errors are in JSON.
func accepted(header, asked string) (form string, ok bool) {
	if asked == "" {
		asked = voucher.MediaType
	}
	if header == "" {
		return asked, true
	}
	other := voucher.MediaTypeXML
	if asked == other {
		other = voucher.MediaType
	}
	best, second := liking(header, asked), liking(header, other)
	switch {
	case best <= 0 && second <= 0:
		return voucher.MediaType, false
	case second > best:
		return other, true
	}
	return asked, true
}

// liking is the quality that an Accept header gives a media type: that of the range which names it most closely (RFC
// 9110 section 12.5.1); below 0 when none does.
func liking(header, kind string) (quality float64) {
	closest := -1
	quality = -1
	for _, part := range strings.Split(header, ",") {
		name, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		close := map[string]int{"*/*": 0, "application/*": 1, kind: 2}
		c, fits := close[name]
		if !fits || c <= closest {
			continue
		}
		q, err := strconv.ParseFloat(params["q"], 64)
		if params["q"] == "" {
			q, err = 1, nil
		}
		if err == nil && q >= 0 && q <= 1 {
			closest, quality = c, q
		}
	}
	return quality
}

type errorsXML struct {
	XMLName xml.Name `xml:"urn:ietf:params:xml:ns:yang:ietf-restconf errors"`
	Type    string   `xml:"error>error-type"`
	Tag     string   `xml:"error>error-tag"`
	Message string   `xml:"error>error-message"`
}

func fail(w http.ResponseWriter, status int, tag, message string) {
	failAs(w, voucher.MediaType, status, tag, message)
}

// failAs writes an error as RFC 8040 section 7.1 has it.
func failAs(w http.ResponseWriter, form string, status int, tag, message string) {
	kind := "application"
	if status == http.StatusMethodNotAllowed || status == http.StatusNotAcceptable || status == http.StatusUnsupportedMediaType {
		kind = "protocol"
	}
	w.Header().Set("Content-Type", form)
	w.WriteHeader(status)
	if form == voucher.MediaTypeXML {
		_ = xml.NewEncoder(w).Encode(errorsXML{Type: kind, Tag: tag, Message: message})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"ietf-restconf:errors": map[string]any{
		"error": []map[string]string{{"error-type": kind, "error-tag": tag, "error-message": message}}}})
}
