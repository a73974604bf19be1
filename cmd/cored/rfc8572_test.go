package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"
)

// This file is a bootstrapping device as RFC 8572, RFC 8366, RFC 8040 and RFC 5652
// describe it, made from those texts and the standard library alone: it shares no line
// with our own device, so that what both believe is what the RFCs say.

// stranger is such a device.
type stranger struct {
	t      testing.TB
	serial string
	maker  *x509.Certificate // trust anchor for vouchers
	http   *http.Client
	form   string // of RESTCONF: json or xml
}

func newStranger(t testing.TB, serial string, idevid tls.Certificate, maker *x509.Certificate) *stranger {
	conf := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{idevid}} // RFC 8572 section 5.3: an untrusted connection
	tr := &http.Transport{TLSClientConfig: conf}
	t.Cleanup(tr.CloseIdleConnections)
	return &stranger{t: t, serial: serial, maker: maker, http: &http.Client{Transport: tr, Timeout: time.Minute}, form: "json"}
}

// post is an operation of RESTCONF (RFC 8040 section 4.4.2).
func (s *stranger) post(root, operation, input string) (status int, body []byte) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, root+"/restconf/operations/ietf-sztp-bootstrap-server:"+operation, bytes.NewReader([]byte(input)))
	if err != nil {
		s.t.Fatal(err)
	}
	form := "application/yang-data+" + s.form
	req.Header.Set("Content-Type", form)
	req.Header.Set("Accept", form)
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(body) > 0 && resp.Header.Get("Content-Type") != form {
		s.t.Errorf("%s answers %q", operation, resp.Header.Get("Content-Type"))
	}
	return resp.StatusCode, body
}

// conveyed is what the device acts on.
type conveyed struct {
	Redirect *struct {
		Server []struct {
			Address string `json:"address"`
			Port    uint16 `json:"port"`
		} `json:"bootstrap-server"`
	} `json:"ietf-sztp-conveyed-info:redirect-information"`
	Onboarding *struct {
		Handling string `json:"configuration-handling"`
		Config   []byte `json:"configuration"`
		Image    *struct {
			OS      string   `json:"os-name"`
			Version string   `json:"os-version"`
			URI     []string `json:"download-uri"`
			Hash    []struct {
				Algorithm string `json:"hash-algorithm"`
				Value     string `json:"hash-value"`
			} `json:"image-verification"`
		} `json:"boot-image"`
	} `json:"ietf-sztp-conveyed-info:onboarding-information"`
	trusted bool
}

type getOutput struct {
	Output struct {
		Reporting string `json:"reporting-level"`
		Conveyed  []byte `json:"conveyed-information"`
		Owner     []byte `json:"owner-certificate"`
		Voucher   []byte `json:"ownership-voucher"`
	} `json:"ietf-sztp-bootstrap-server:output"`
}

// bootstrap is RFC 8572 section 5.3 to 5.6 at one server.
func (s *stranger) bootstrap(root string) (*conveyed, error) {
	nonce := bytes.Repeat([]byte{7}, 16)
	input := `{"ietf-sztp-bootstrap-server:input":{"signed-data-preferred":[null],"hw-model":"model-x","os-name":"other-os","os-version":"1","nonce":%q}}`
	if s.form == "xml" {
		input = `<input xmlns="urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server"><signed-data-preferred/><hw-model>model-x</hw-model><os-name>other-os</os-name><nonce>%s</nonce></input>`
	}
	status, body := s.post(root, "get-bootstrapping-data", fmt.Sprintf(input, base64.StdEncoding.EncodeToString(nonce)))
	if status != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", status, body)
	}
	out, err := s.read(body)
	if err != nil {
		return nil, err
	}
	return s.process(out, nonce, time.Now())
}

// read takes the answer in the form that was asked for (RFC 7951 and RFC 7950: bytes are base64 in both).
func (s *stranger) read(body []byte) (out getOutput, err error) {
	if s.form == "json" {
		return out, json.Unmarshal(body, &out)
	}
	var in struct {
		XMLName   xml.Name `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server output"`
		Reporting string   `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server reporting-level"`
		Conveyed  string   `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server conveyed-information"`
		Owner     string   `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server owner-certificate"`
		Voucher   string   `xml:"urn:ietf:params:xml:ns:yang:ietf-sztp-bootstrap-server ownership-voucher"`
	}
	if err = xml.Unmarshal(body, &in); err != nil {
		return out, err
	}
	out.Output.Reporting = in.Reporting
	for from, to := range map[string]*[]byte{in.Conveyed: &out.Output.Conveyed, in.Owner: &out.Output.Owner, in.Voucher: &out.Output.Voucher} {
		if *to, err = base64.StdEncoding.DecodeString(from); err != nil {
			return out, err
		}
	}
	return out, nil
}

// process is section 5.4 and 5.5: signed data, or an unsigned redirect.
func (s *stranger) process(out getOutput, nonce []byte, now time.Time) (*conveyed, error) {
	var c conveyed
	if len(out.Output.Voucher) == 0 {
		content, err := unsignedContent(out.Output.Conveyed)
		if err == nil {
			err = json.Unmarshal(content, &c)
		}
		if err == nil && c.Redirect == nil {
			err = errors.New("unsigned data that is no redirect")
		}
		return &c, err
	}
	pinned, err := s.voucher(out.Output.Voucher, nonce, now)
	if err != nil {
		return nil, fmt.Errorf("voucher: %w", err)
	}
	certs, err := certsOf(out.Output.Owner)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("owner certificate: %w", err)
	}
	if err := leads(certs[0], certs, pinned, now); err != nil {
		return nil, fmt.Errorf("owner certificate: %w", err)
	}
	content, signer, _, err := openSigned(out.Output.Conveyed, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 43})
	if err != nil {
		return nil, fmt.Errorf("conveyed information: %w", err)
	}
	if !signer.Equal(certs[0]) {
		return nil, errors.New("conveyed information: not signed by the owner certificate")
	}
	c.trusted = true
	return &c, json.Unmarshal(content, &c)
}

func (s *stranger) voucher(raw, nonce []byte, now time.Time) (pinned *x509.Certificate, err error) {
	content, signer, certs, err := openSigned(raw, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 40})
	if err != nil {
		return nil, err
	}
	if err := leads(signer, certs, s.maker, now); err != nil {
		return nil, err
	}
	var v struct {
		Voucher struct {
			Created   time.Time  `json:"created-on"`
			Expires   *time.Time `json:"expires-on"`
			Assertion string     `json:"assertion"`
			Serial    string     `json:"serial-number"`
			Pinned    []byte     `json:"pinned-domain-cert"`
			Nonce     []byte     `json:"nonce"`
		} `json:"ietf-voucher:voucher"`
	}
	if err := json.Unmarshal(content, &v); err != nil {
		return nil, err
	}
	switch {
	case v.Voucher.Serial != s.serial:
		return nil, fmt.Errorf("it is of %q", v.Voucher.Serial)
	case v.Voucher.Nonce != nil && !bytes.Equal(v.Voucher.Nonce, nonce):
		return nil, errors.New("another nonce")
	case v.Voucher.Expires != nil && now.After(*v.Voucher.Expires):
		return nil, errors.New("expired")
	case v.Voucher.Assertion == "" || v.Voucher.Created.IsZero():
		return nil, errors.New("mandatory members are missing")
	}
	return x509.ParseCertificate(v.Voucher.Pinned)
}

func leads(leaf *x509.Certificate, others []*x509.Certificate, anchor *x509.Certificate, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(anchor)
	for _, c := range others {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// CMS, RFC 5652 sections 3 and 5.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"optional,tag:0"`
}

type signedData struct {
	Version int
	Digests asn1.RawValue `asn1:"set"`
	Encap   struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional,tag:0"`
	}
	Certs   asn1.RawValue `asn1:"optional,tag:0"`
	CRLs    asn1.RawValue `asn1:"optional,tag:1"`
	Signers []signerInfo  `asn1:"set"`
}

type signerInfo struct {
	Version int
	Issuer  struct {
		Name   asn1.RawValue
		Serial *big.Int
	}
	Digest     pkix.AlgorithmIdentifier
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
	Algorithm  pkix.AlgorithmIdentifier
	Signature  []byte
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values asn1.RawValue `asn1:"set"`
}

func readSigned(raw []byte) (*signedData, []*x509.Certificate, error) {
	var ci contentInfo
	if rest, err := asn1.Unmarshal(raw, &ci); err != nil || len(rest) > 0 {
		return nil, nil, fmt.Errorf("no ContentInfo: %w", err)
	}
	if !ci.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}) {
		return nil, nil, fmt.Errorf("content of type %v", ci.Type)
	}
	var sd signedData
	if rest, err := asn1.Unmarshal(ci.Content.Bytes, &sd); err != nil || len(rest) > 0 {
		return nil, nil, fmt.Errorf("no SignedData: %w", err)
	}
	certs, err := x509.ParseCertificates(sd.Certs.Bytes)
	return &sd, certs, err
}

func certsOf(raw []byte) ([]*x509.Certificate, error) {
	_, certs, err := readSigned(raw)
	return certs, err
}

func unsignedContent(raw []byte) (content []byte, err error) {
	var ci contentInfo
	if _, err := asn1.Unmarshal(raw, &ci); err != nil {
		return nil, err
	}
	if !ci.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 1, 43}) {
		return nil, fmt.Errorf("content of type %v", ci.Type)
	}
	_, err = asn1.Unmarshal(ci.Content.Bytes, &content)
	return content, err
}

func openSigned(raw []byte, kind asn1.ObjectIdentifier) (content []byte, signer *x509.Certificate, certs []*x509.Certificate, err error) {
	sd, certs, err := readSigned(raw)
	if err != nil {
		return nil, nil, nil, err
	}
	if !sd.Encap.Type.Equal(kind) || len(sd.Signers) != 1 {
		return nil, nil, nil, fmt.Errorf("content of type %v with %d signers", sd.Encap.Type, len(sd.Signers))
	}
	if _, err := asn1.Unmarshal(sd.Encap.Content.Bytes, &content); err != nil {
		return nil, nil, nil, err
	}
	info := sd.Signers[0]
	for _, c := range certs {
		if c.SerialNumber.Cmp(info.Issuer.Serial) == 0 && bytes.Equal(c.RawIssuer, info.Issuer.Name.FullBytes) {
			signer = c
		}
	}
	if signer == nil {
		return nil, nil, nil, errors.New("the signer's certificate is not inside")
	}
	// Section 5.4: the attributes are signed as a SET OF.
	signed := append([]byte{}, info.Attributes.FullBytes...)
	if len(signed) == 0 {
		return nil, nil, nil, errors.New("no signed attributes, which content that is not id-data must have (section 5.3)")
	}
	signed[0] = 0x31
	sum := sha256.Sum256(content)
	hasType, hasDigest := false, false
	for rest := info.Attributes.Bytes; len(rest) > 0; {
		var a attribute
		if rest, err = asn1.Unmarshal(rest, &a); err != nil {
			return nil, nil, nil, err
		}
		switch {
		case a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}):
			var got asn1.ObjectIdentifier
			if _, err := asn1.Unmarshal(a.Values.Bytes, &got); err != nil {
				return nil, nil, nil, err
			}
			hasType = got.Equal(kind)
		case a.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}):
			var got []byte
			if _, err := asn1.Unmarshal(a.Values.Bytes, &got); err != nil {
				return nil, nil, nil, err
			}
			hasDigest = bytes.Equal(got, sum[:])
		}
	}
	if !hasType || !hasDigest {
		return nil, nil, nil, errors.New("the signed attributes are not those of the content")
	}
	attrs := sha256.Sum256(signed)
	switch pub := signer.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, attrs[:], info.Signature) {
			return nil, nil, nil, errors.New("the signature is wrong")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, attrs[:], info.Signature); err != nil {
			return nil, nil, nil, err
		}
	default:
		return nil, nil, nil, errors.New("a key of another kind")
	}
	return content, signer, certs, nil
}
