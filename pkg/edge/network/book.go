package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// book remembers which network has which subnet.
type book struct {
	Subnets map[string]netip.Prefix `json:"subnets"` // by app/network
}

// maxBook bounds the file: a pool of /16 has 256 subnets.
const maxBook = 1 << 20

func readBook(path string) (book, error) {
	b := book{Subnets: map[string]netip.Prefix{}}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	if len(raw) > maxBook || json.Unmarshal(raw, &b) != nil || b.Subnets == nil {
		// Subnets can be chosen again: containers that run keep theirs, and a clash is
		// avoided because addresses in use are looked at.
		return book{Subnets: map[string]netip.Prefix{}}, nil
	}
	return b, nil
}

func (b book) save(path string) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(raw)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// choose picks the first /24 of the pool that overlaps none of the taken prefixes.
// It is a plain function.
func choose(pool netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	for addr := pool.Addr(); pool.Contains(addr); {
		p := netip.PrefixFrom(addr, 24)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
		b := addr.As4()
		next := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8
		next += 1 << 8
		if next == 0 {
			break
		}
		addr = netip.AddrFrom4([4]byte{byte(next >> 24), byte(next >> 16), byte(next >> 8), 0})
	}
	return netip.Prefix{}, fmt.Errorf("network: no subnet of %s is left; remove apps or widen the pool", pool)
}

// subnet returns the network's subnet and gives it one when it has none.
func (m *Manager) subnet(app, name string) (netip.Prefix, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := app + "/" + name
	if p, ok := m.book.Subnets[key]; ok {
		return p, nil
	}
	var taken []netip.Prefix
	for _, p := range m.book.Subnets {
		taken = append(taken, p)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			taken = append(taken, p.Masked())
		}
	}
	p, err := choose(m.pool, taken)
	if err != nil {
		return p, err
	}
	m.book.Subnets[key] = p
	return p, m.book.save(filepath.Join(m.cfg.State, "networks.json"))
}

func firstAddress(res types.Result) (netip.Addr, error) {
	if res == nil {
		return netip.Addr{}, errors.New("network: no result is kept")
	}
	r, err := current.NewResultFromResult(res)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, ip := range r.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, errors.New("network: the plugins gave no address")
}
