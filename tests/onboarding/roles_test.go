package onboarding

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/pkg/edge/uplink"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// play is this program in the network of a box, until it is told to end.
func play(role string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch role {
	case roleDHCP:
		return serveDHCP(ctx, args[0], net.ParseIP(args[1]), net.ParseIP(args[2]), strings.Split(args[3], ","))
	case roleUplink:
		return uplink.Run(ctx, uplink.Config{Run: args[1], Sys: "/sys", Only: args[:1], Say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
	case roleRogue:
		return serveLies(ctx, args[0])
	}
	return errors.New("no such role")
}

// serveDHCP gives one address on a link of two, and option 143.
func serveDHCP(ctx context.Context, dev string, me, you net.IP, servers []string) error {
	mask := net.CIDRMask(30, 32)
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(you), dhcpv4.WithServerIP(me), dhcpv4.WithNetmask(mask), dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(me)), dhcpv4.WithOption(dhcpv4.OptRouter(me)), dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(143), sztp.FormatList(servers)))
		if err == nil {
			_, err = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort})
		}
		fmt.Println(m.MessageType(), "from", peer, err)
	}
	s, err := server4.NewServer(dev, nil, handler)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { s.Close() })
	return s.Serve()
}

// rogue makes six answers that no box may believe, has them served near a box, and returns
// where.
func (s *site) rogue(serial, address string) (servers []string) {
	s.t.Helper()
	forger, thief := newMaker(s.t, "Example Boxes"), newMaker(s.t, "thief")
	long := time.Now().Add(-48 * time.Hour).UTC().Truncate(time.Second)
	mine := func(m maker, serial string, nonce []byte, expires *time.Time) []byte {
		made := time.Now().Add(-72 * time.Hour)
		raw, err := voucher.Sign(&voucher.Voucher{CreatedOn: made, ExpiresOn: expires, Nonce: nonce, Assertion: voucher.Verified, SerialNumber: serial, PinnedDomainCert: thief.cert.Raw}, m.key, []*x509.Certificate{m.cert})
		must(s.t, err)
		return raw
	}
	config, err := json.Marshal(map[string]any{"parents": []api.ParentRef{{Address: address + ":8883", HTTPSPort: 8443}}})
	must(s.t, err)
	c := &voucher.Conveyed{Onboarding: &voucher.Onboarding{Config: config}}
	signed, err := voucher.SignConveyed(c, thief.key, []*x509.Certificate{thief.cert})
	must(s.t, err)
	owner, err := voucher.OwnerCertificate([]*x509.Certificate{thief.cert})
	must(s.t, err)
	plain, err := voucher.PlainConveyed(c)
	must(s.t, err)
	dir := filepath.Join(s.Dir, "rogue")
	must(s.t, os.MkdirAll(dir, 0o755))
	for port, a := range map[int]voucher.Answer{
		9441: {Conveyed: signed, OwnerCert: owner, Voucher: mine(forger, serial, nil, nil)},
		9442: {Conveyed: signed, OwnerCert: owner, Voucher: s.maker.voucher(s.t, serial, s.root(), nil)}, // the right voucher, the thief's word
		9443: {Conveyed: signed, OwnerCert: owner, Voucher: mine(s.maker, "EX-9999", nil, nil)},
		9444: {Conveyed: signed, OwnerCert: owner, Voucher: mine(s.maker, serial, nil, &long)},
		9445: {Conveyed: signed, OwnerCert: owner, Voucher: mine(s.maker, serial, []byte("another's nonce"), nil)},
		9446: {Conveyed: plain},
	} {
		b, err := voucher.Output(a)
		must(s.t, err)
		must(s.t, os.WriteFile(filepath.Join(dir, strconv.Itoa(port)), b, 0o644))
		servers = append(servers, fmt.Sprintf("https://%s:%d", address, port))
	}
	s.process(s.CorePrefix(), roleRogue, dir)
	return servers
}

// serveLies gives each file of a folder as the answer at the port that is its name.
func serveLies(ctx context.Context, dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "core"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	ended := make(chan error, len(files))
	for _, f := range files {
		answer, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		l, err := tls.Listen("tcp", ":"+f.Name(), &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert})
		if err != nil {
			return err
		}
		go func() {
			ended <- http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, ":get-bootstrapping-data") {
					return
				}
				w.Header().Set("Content-Type", voucher.MediaType)
				_, _ = w.Write(answer)
			}))
		}()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}
