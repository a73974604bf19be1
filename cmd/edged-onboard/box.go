package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/dnssd"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/onboard/sztp"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/identity/voucher"
	"tributary.dev/tributary/pkg/link/names"
	"tributary.dev/tributary/pkg/link/proxy"
)

// box is one without an owner.
type box struct {
	o     options
	log   *slog.Logger
	out   *json.Encoder
	floor time.Time

	key    crypto.Signer // of the birth certificate
	idevid []*x509.Certificate
	makers []*x509.Certificate
	finder *sztp.Search
}

// wake finds out who the box is.
func (b *box) wake() (err error) {
	if b.makers, err = certificates(b.o.makers); err != nil {
		return err
	}
	own, _, err := identity.LoadOrCreateKeys(b.identity(""))
	if err != nil {
		return err
	}
	if b.key, b.idevid, err = b.born(own); err != nil {
		return err
	}
	if text, err := readSome(b.o.built, 64); err == nil {
		if s, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil {
			_ = b.raise(time.Unix(s, 0)) // never fails
		}
	}
	_, noSlots := os.Stat(b.o.slot)
	b.finder, err = sztp.New(sztp.Config{
		Updates: noSlots == nil,
		Key:     b.key, Own: own, IDevID: b.idevid, Makers: b.makers, Pairing: !b.o.noPairing, Sources: b.sources, Dial: b.dial, Clock: b.clock,
		Waiting: b.tell, Pause: b.o.pause, Log: b.log,
	})
	return err
}

// born finds out by which key the box is known: a manufacturer's file, the one that its TPM
// has for life, or the one that it made itself, which a factory reset ends.
func (b *box) born(own *ecdsa.PrivateKey) (crypto.Signer, []*x509.Certificate, error) {
	key, chain, err := birth(b.o.birth)
	if key != nil || err != nil {
		return key, chain, err
	}
	var signer crypto.Signer = own
	ctx, cancel := context.WithTimeout(context.Background(), tpmPatience)
	defer cancel()
	switch in, err := boot.Identity(ctx); {
	case err == nil:
		signer = in
	case !errors.Is(err, boot.ErrNoTPM) && !errors.Is(err, fs.ErrNotExist):
		b.log.Warn("the TPM's identity is not used", "err", err)
	}
	if chain, err = voucher.SelfIDevID(signer); err != nil {
		return nil, nil, err
	}
	return signer, chain, nil
}

// tpmPatience bounds the wait for the TPM, which makes the key anew each time.
const tpmPatience = time.Minute

// search looks for the owner, and shows the pairing code meanwhile.
func (b *box) search(ctx context.Context) (*sztp.Found, error) {
	d := b.finder.Device()
	if _, err := os.Stat(filepath.Dir(b.o.code)); err == nil && d.Code != "" && b.o.code != "" {
		if err := atomicfile.Write(b.o.code, []byte(d.Code+"\n"), 0o600); err != nil {
			b.log.Warn("the pairing code is not on the console", "err", err)
		}
		defer os.Remove(b.o.code)
	}
	begin := api.Warning{Name: "no-owner", Severity: api.Critical, Message: "this box looks for its owner; its serial number is " + d.Serial}
	if d.Code != "" {
		begin.Message += " and its pairing code is " + d.Code
		begin.Remedy = "let it in: edgectl device approve " + d.Code
	}
	b.tell(begin)
	return b.finder.Run(ctx)
}

// saveFirst keeps what the box runs while its owner is out of reach, if he says so: then
// edged begins with it. It takes a relay to fetch from and a manufacturer's certificate.
func (b *box) saveFirst(f *sztp.Found) error {
	if old, err := onboard.LoadFirst(b.o.data); err != nil || old != nil && old.RootFP != f.RootFP {
		if err := onboard.DropFirst(b.o.data); err != nil { // another owner's, or torn
			return err
		}
	}
	first := f.Beginning.First
	if first == nil || f.Server == "" {
		return nil
	}
	if _, err := os.Stat(b.o.birth); err != nil {
		return nil
	}
	keep := onboard.First{RootFP: f.RootFP, Made: first.Made, From: f.Server, Birth: b.o.birth}
	if err := json.Unmarshal(first.Items, &keep.Items); err != nil {
		b.log.Warn("what the owner has this box run at first is not understood", "err", err)
		return nil
	}
	return keep.Save(b.o.data)
}

// now never precedes what is certainly past.
func (b *box) now() time.Time {
	if now := time.Now(); now.After(b.floor) {
		return now
	}
	return b.floor
}

func (b *box) raise(t time.Time) error {
	if t.After(b.floor) {
		b.floor = t
	}
	return nil
}

// clock tells what the box knows of the time before it knows anybody: what edged kept and
// when the image was built are past; the machine's clock counts once the kernel is told
// that it is in step with another.
func (b *box) clock() sztp.Clock {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return sztp.Clock{Now: b.now(), Floor: b.floor, Trusted: err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0}
}

// birth reads a manufacturer's key and certificates from one PEM file; nothing without it.
func birth(path string) (*ecdsa.PrivateKey, []*x509.Certificate, error) {
	text, err := readSome(path, 64<<10)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	key, chain, err := voucher.ParseBirth([]byte(text))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, chain, nil
}

func certificates(path string) ([]*x509.Certificate, error) {
	text, err := readSome(path, 64<<10)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	certs, err := identity.ParseCerts([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

// roots are the HTTPS roots of parents, at which the box enrols.
func (b *box) roots(parents []api.ParentRef) (out []string) {
	for _, p := range parents {
		host, _, err := net.SplitHostPort(p.Address)
		if err != nil {
			host = p.Address
		}
		port := p.HTTPSPort
		if port == 0 {
			port = 8443
		}
		out = append(out, "https://"+net.JoinHostPort(host, strconv.Itoa(port)))
	}
	return out
}

// sitePatience is how long answers of the site are waited for.
const sitePatience = 2 * time.Second

// sources names whom to ask for the owner, as things stand now.
func (b *box) sources(ctx context.Context) (out []sztp.Source) {
	add := func(kind sztp.Kind, places []string) {
		for _, p := range places {
			out = append(out, sztp.Source{Kind: kind, Place: p})
		}
	}
	switch b.o.sticks {
	case "auto":
		add(sztp.Stick, sztp.Sticks("/sys", "/dev"))
	case "none":
	default:
		add(sztp.Stick, list(b.o.sticks))
	}
	add(sztp.DHCP, b.byDHCP())
	if b.o.site != "off" {
		to, _ := netip.ParseAddrPort(b.o.site) // "on": the usual group
		found, err := dnssd.OnSite(ctx, to, sitePatience)
		if err != nil {
			b.log.Debug("the site is not asked", "err", err)
		}
		add(sztp.Site, found)
		add(sztp.Site, sztp.ByDNS(ctx, b.networks(), searchDomains()))
	}
	for _, file := range list(b.o.servers) {
		text, err := readSome(file, 64<<10)
		if err != nil {
			continue // most boxes have none
		}
		servers, err := sztp.ParseServers(text)
		if err != nil {
			b.log.Warn("not all bootstrap servers are asked", "file", file, "err", err)
		}
		add(sztp.BuiltIn, servers)
	}
	add(sztp.BuiltIn, list(b.o.bootstrap))
	return out
}

// uplink is what the onboarding asks of one (pkg/edge/uplink writes it).
type uplink struct {
	Name  string `json:"name"`
	Best  bool   `json:"best"`
	SZTP  []byte `json:"sztp"`
	SZTP6 []byte `json:"sztp6"`
}

// uplinks are those that the box has now.
func (b *box) uplinks() (list []uplink) {
	text, err := readSome(b.o.uplinks, 256<<10)
	if err != nil {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		b.log.Warn("what DHCP gave cannot be read", "file", b.o.uplinks, "err", err)
		return nil
	}
	slices.SortStableFunc(list, func(x, y uplink) int {
		switch {
		case x.Best == y.Best:
			return 0
		case x.Best:
			return -1
		}
		return 1
	})
	return list
}

// networks are where the uplinks lead, the one that the way out goes by first.
func (b *box) networks() names.Networks { return names.Read(b.o.uplinks) }

// dial reaches bootstrap servers and parents, by the proxy of the moment if there is one, and by names that some uplink's name
// servers know.
func (b *box) dial(ctx context.Context, network, address string) (net.Conn, error) {
	direct := func(ctx context.Context, network, address string) (net.Conn, error) {
		return b.networks().Dial(ctx, network, address)
	}
	return proxy.Through(proxy.FromFile(b.o.proxy), direct, net.InterfaceAddrs)(ctx, network, address)
}

// byDHCP are the servers that options 143 and 136 name.
func (b *box) byDHCP() (out []string) {
	for _, u := range b.uplinks() {
		for _, option := range [][]byte{u.SZTP, u.SZTP6} {
			servers, err := sztp.ParseList(option)
			if err != nil {
				b.log.Warn("what DHCP says of bootstrap servers is not used", "uplink", u.Name, "err", err)
			}
			out = append(out, servers...)
		}
	}
	return out
}

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// searchDomains are those of resolv.conf.
func searchDomains() []string {
	text, err := readSome("/etc/resolv.conf", 16<<10)
	if err != nil {
		return nil
	}
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "search "); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

func readSome(path string, most int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	return string(b), err
}
