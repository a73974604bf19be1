package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/manifest"
	"tributary.dev/tributary/pkg/rest"
)

// A box that knows its owner and cannot enrol, because its relay does not reach the core,
// runs what the owner signed for its first day. It is no member: it has no certificate,
// no secrets, and takes no commands.

// guest is where such a box fetches artifacts: its relay, by the certificate of its birth.
// What it gets is checked by digest, so the server's own certificate is of no consequence.
type guest struct {
	base   *url.URL
	client *http.Client
}

// Endpoint implements oci.Upstream.
func (g *guest) Endpoint() (*url.URL, *http.Client, error) { return g.base, g.client, nil }

func newGuest(f *onboard.First) (*guest, error) {
	base, err := url.Parse(f.From)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(f.Birth)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Birth, err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	return &guest{base, &http.Client{Transport: &http.Transport{TLSClientConfig: conf, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: time.Minute}}}, nil
}

// The pauses between two looks at what the first apps lack, and for what the finder wrote.
const (
	firstLook  = 2 * time.Second
	firstPause = 15 * time.Second
)

// runFirst runs the first apps from when they are known until ctx ends; they go on running
// then, and what comes next takes them over.
func (b *box) runFirst(ctx context.Context) {
	var f *onboard.First
	for {
		var err error
		if f, err = onboard.LoadFirst(b.o.data); err != nil {
			b.log.Warn("what the owner has this box run at first is not used", "err", err)
		}
		if f != nil || !rest.For(ctx, firstLook) {
			break
		}
	}
	if f == nil {
		return
	}
	if err := b.firstApps(ctx, f); err != nil && ctx.Err() == nil {
		b.log.Error("this box does not run what its owner has it run at first", "err", err)
	}
}

func (b *box) firstApps(ctx context.Context, f *onboard.First) error {
	from, err := newGuest(f)
	if err != nil {
		return err
	}
	if err := b.makeWorkloadFrom(ctx, from); err != nil {
		return err
	}
	work := b.work
	running := make(chan error, 1)
	inner, stop := context.WithCancel(ctx)
	go func() { running <- work.Run(inner) }()
	defer func() {
		stop()
		<-running
		if err := work.Close(); err != nil {
			b.log.Warn("not closed cleanly", "err", err)
		}
		b.work, b.meter = nil, nil
		from.client.CloseIdleConnections()
	}()
	b.log.Info("no member yet; running what the owner signed for this box's first day", "items", len(f.Items), "from", f.From)
	for ctx.Err() == nil {
		apps, unready := agent.First(ctx, f.Items, b.state, from, b.log)
		if ctx.Err() != nil {
			return nil
		}
		work.Set(apps)
		if len(unready) == 0 {
			break
		}
		b.log.Warn("apps of the first day are not ready", "why", unready)
		if !rest.For(ctx, firstPause) {
			return nil
		}
	}
	select {
	case err := <-running:
		running <- err
		return err
	case <-ctx.Done():
		return nil
	}
}

// firstNames are the apps that a box which is no member yet is told to run.
func firstNames(data string) (names []string) {
	f, err := onboard.LoadFirst(data)
	if err != nil || f == nil {
		return nil
	}
	for key := range f.Items {
		if name, ok := strings.CutPrefix(key, manifest.PrefixApp); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// firstWarning says beside why a box is no member yet that it runs apps all the same.
func (b *box) firstWarning(w api.Warning) api.Warning {
	if names := firstNames(b.o.data); w.Name == "not-enrolled" && len(names) > 0 {
		w.Severity = api.Degraded
		w.Message += "; until then it runs what its owner signed for it: " + strings.Join(names, ", ")
	}
	return w
}
