package sztp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/pkg/identity/voucher"
)

// client speaks with bootstrap servers. It takes any server's certificate and shows the
// box's own: an answer is believed for its signatures, never for its sender.
func client(chain []*x509.Certificate, key *ecdsa.PrivateKey) *http.Client {
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, Proxy: nil, TLSHandshakeTimeout: 10 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask is get-bootstrapping-data of one server.
func ask(ctx context.Context, c *http.Client, root string, q voucher.Ask) (Artifacts, error) {
	body, err := voucher.Input(q)
	if err != nil {
		return Artifacts{}, err
	}
	b, err := call(ctx, c, root+voucher.PathData, body)
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
	_, err = call(ctx, c, root+voucher.PathProgress, body)
	return err
}

func call(ctx context.Context, c *http.Client, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", voucher.MediaType)
	req.Header.Set("Accept", voucher.MediaType)
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

// The files of a stick, in DER, in a folder tributary/ or in one named after the serial
// number below it; the latter goes first.
const (
	stickDir      = "tributary"
	stickConveyed = "conveyed-information.cms"
	stickOwner    = "owner-certificate.cms"
	stickVoucher  = "ownership-voucher.cms"
)

// readStick reads the signed data of removable storage (RFC 8572 section 4.1).
func readStick(mount, serial string) (Artifacts, error) {
	dirs := []string{filepath.Join(mount, stickDir)}
	if filepath.Base(serial) == serial && serial != "." && serial != ".." {
		dirs = []string{filepath.Join(dirs[0], serial), dirs[0]}
	}
	err := error(fs.ErrNotExist)
	for _, dir := range dirs {
		var a Artifacts
		if a.Conveyed, err = readSome(filepath.Join(dir, stickConveyed), voucher.MaxConveyed); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return a, err
		}
		if a.OwnerCert, err = readSome(filepath.Join(dir, stickOwner), voucher.MaxVoucher); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		if a.Voucher, err = readSome(filepath.Join(dir, stickVoucher), voucher.MaxVoucher); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, err
		}
		return a, nil
	}
	return Artifacts{}, err
}

func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return b, err
}
