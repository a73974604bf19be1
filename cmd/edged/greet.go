package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/dnssd"
	"tributary.dev/tributary/pkg/edge/hardware"
)

// greet has a relay answer boxes of its site that look for their owner.
func (b *box) greet(ctx context.Context) error {
	if b.listen.greet == nil {
		<-ctx.Done()
		return nil
	}
	conf := b.member.Live.ServerTLSOptional()
	// Boxes show the certificate of their birth, which the core judges.
	conf.ClientAuth, conf.VerifyConnection, conf.MinVersion = tls.RequestClientCert, nil, tls.VersionTLS12
	srv := &http.Server{Handler: b.serve.Greeter(ctx, filepath.Join(b.o.data, "greetings"), b.attachHere), TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug)}
	go b.announce(ctx)
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.ServeTLS(b.listen.greet, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// expected takes what the manifest says of boxes that are expected at this site.
func (b *box) expected() func(word string) {
	if b.serve == nil || b.listen.greet == nil {
		return nil
	}
	return b.serve.Expected
}

// attachHere is where the box that asks reaches this relay: where it asked. Before any asks,
// at whatever addresses the relay has.
func (b *box) attachHere(r *http.Request) (out []api.ParentRef) {
	hosts := hardware.Addresses()
	if r != nil {
		local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if !ok {
			return nil
		}
		host, _, err := net.SplitHostPort(local.String())
		if err != nil {
			return nil
		}
		hosts = []string{host}
	}
	_, mqtt, _ := net.SplitHostPort(b.listen.mqtt.Addr().String())   // a listener's address
	_, https, _ := net.SplitHostPort(b.listen.https.Addr().String()) // always has a port
	port, _ := strconv.Atoi(https)
	for _, host := range hosts {
		out = append(out, api.ParentRef{Device: b.member.Live.Get().ID().String(), Address: net.JoinHostPort(host, mqtt), HTTPSPort: port})
	}
	return out
}

// announce answers the site by mDNS, in the networks of this relay.
func (b *box) announce(ctx context.Context) {
	dnssd.Announce(ctx, b.member.Live.Get().ID().String(), b.listen.greet.Addr(), func(err error) {
		b.log.Warn("boxes of this site do not hear of this relay by mDNS", "err", err)
	})
}
