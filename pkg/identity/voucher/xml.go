package voucher

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MediaTypeXML is RESTCONF's other form (RFC 8040 section 3.2, RFC 7950): the same content in elements.
const (
	MediaTypeXML = "application/yang-data+xml"

	maxElements = 256
	maxNesting  = 8
)

// binary is YANG's type of bytes: base64, with any space between.
type binary []byte

// MarshalText implements encoding.TextMarshaler.
func (b binary) MarshalText() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(b)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *binary) UnmarshalText(text []byte) (err error) {
	*b, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	return err
}

type askXML struct {
	XMLName   xml.Name  `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server input"`
	Preferred *struct{} `xml:"signed-data-preferred"`
	Model     string    `xml:"hw-model,omitempty"`
	OSName    string    `xml:"os-name,omitempty"`
	OSVersion string    `xml:"os-version,omitempty"`
	Nonce     binary    `xml:"nonce,omitempty"`
	Type      string    `xml:"progress-type,omitempty"`
	Message   string    `xml:"message,omitempty"`
}

type answerXML struct {
	XMLName   xml.Name    `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server output"`
	Reporting string      `xml:"reporting-level,omitempty"`
	Conveyed  binary      `xml:"conveyed-information"`
	OwnerCert binary      `xml:"owner-certificate,omitempty"`
	Voucher   binary      `xml:"ownership-voucher,omitempty"`
	Pairing   *pairingXML `xml:"urn:tributary:pairing pairing"`
}

type pairingXML struct {
	Root  binary `xml:"root"`
	Proof binary `xml:"proof"`
}

// ReadInputXML reads a request for an Ask or a Progress; no body at all is an empty input. Elements that are not known are passed over.
func ReadInputXML(b []byte, v any) error {
	var in askXML
	if len(b) > 0 {
		if err := readXML(b, MaxRequest, &in); err != nil {
			return err
		}
	}
	switch v := v.(type) {
	case *Ask:
		*v = Ask{Model: in.Model, OSName: in.OSName, OSVersion: in.OSVersion, Nonce: in.Nonce}
		if in.Preferred != nil {
			v.SignedDataPreferred = []any{nil}
		}
	case *Progress:
		*v = Progress{Type: in.Type, Message: in.Message}
	default:
		return fmt.Errorf("%T has no form in XML", v)
	}
	return nil
}

// OutputXML writes a reply.
func OutputXML(a *Answer) ([]byte, error) {
	out := answerXML{Reporting: a.Reporting, Conveyed: a.Conveyed, OwnerCert: a.OwnerCert, Voucher: a.Voucher}
	if a.Pairing != nil {
		out.Pairing = &pairingXML{a.Pairing.Root, a.Pairing.Proof}
	}
	return xml.Marshal(out)
}

// readXML reads one element, without document types, entities of its own or processing instructions.
func readXML(b []byte, most int, v any) error {
	if len(b) > most {
		return fmt.Errorf("%d bytes, more than %d", len(b), most)
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	roots, elements, depth := 0, 0, 0
	for {
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch token := token.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
			elements++
		case xml.EndElement:
			depth--
		case xml.Directive:
			return errors.New("a document type, which is not taken")
		case xml.ProcInst:
			if token.Target != "xml" {
				return fmt.Errorf("an instruction for %.20q, which is not taken", token.Target)
			}
		case xml.CharData:
			if depth == 0 && len(bytes.TrimSpace(token)) > 0 {
				return errors.New("text outside of the element")
			}
		}
		if roots > 1 || elements > maxElements || depth > maxNesting || depth < 0 {
			return fmt.Errorf("more than one element, %d in it, or %d deep", maxElements, maxNesting)
		}
	}
	return xml.Unmarshal(b, v)
}
