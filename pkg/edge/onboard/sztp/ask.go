package sztp

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"tributary.dev/tributary/pkg/identity/voucher"
)

// client speaks with bootstrap servers. It takes any server's certificate and shows the
// box's own: an answer is believed for its signatures, never for its sender.
func client(chain []*x509.Certificate, key crypto.Signer, dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, DialContext: dial, Proxy: nil, TLSHandshakeTimeout: 10 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask is get-bootstrapping-data of one server.
func ask(ctx context.Context, c *http.Client, root, hint string, q voucher.Ask) (Artifacts, error) {
	body, err := voucher.Input(q)
	if err != nil {
		return Artifacts{}, err
	}
	b, err := call(ctx, c, root+voucher.PathData, hint, body)
	if err != nil {
		return Artifacts{}, err
	}
	var a voucher.Answer
	if err := voucher.ReadOutput(b, &a); err != nil {
		return Artifacts{}, refuse(Unreadable, "the answer cannot be read: %v", err)
	}
	return Artifacts{Conveyed: a.Conveyed, OwnerCert: a.OwnerCert, Voucher: a.Voucher, Pairing: a.Pairing, Nonce: q.Nonce}, nil
}

// report is report-progress of one server.
func report(ctx context.Context, c *http.Client, root string, p voucher.Progress) error {
	body, err := voucher.Input(p)
	if err != nil {
		return err
	}
	_, err = call(ctx, c, root+voucher.PathProgress, "", body)
	return err
}

func call(ctx context.Context, c *http.Client, url, hint string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", voucher.MediaType)
	req.Header.Set("Accept", voucher.MediaType)
	if hint != "" {
		req.Header.Set(voucher.HintHeader, hint)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, voucher.MaxReply+1))
	if err != nil {
		return nil, fmt.Errorf("the answer broke off: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("the server answered %d: %s", resp.StatusCode, saying(b))
	}
	return b, nil
}

// saying takes the message out of an error of RESTCONF.
func saying(b []byte) string {
	var e struct {
		Errors struct {
			Error []struct {
				Message string `json:"error-message"`
			} `json:"error"`
		} `json:"ietf-restconf:errors"`
	}
	if json.Unmarshal(b, &e) != nil || len(e.Errors.Error) == 0 {
		return "it does not say why"
	}
	return fmt.Sprintf("%.300q", e.Errors.Error[0].Message)
}
