package sztp

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"tributary.dev/tributary/pkg/link/names"
)

// ByDNS looks bootstrap servers up in domains, and in those of the networks themselves, by the
// name servers of each (RFC 6763 section 10; the name of the service is registered by RFC 8572
// section 10.7).
func ByDNS(ctx context.Context, n names.Networks, domains []string) (out []string) {
	for _, one := range n {
		domains = append(domains[:len(domains):len(domains)], one.Search...)
	}
	slices.Sort(domains)
	domains = slices.Compact(domains)
	domains = domains[:min(len(domains), 8)]
	ctx, cancel := context.WithTimeout(ctx, names.Patience)
	defer cancel()
	asked := n.Resolvers()
	found := make([][]string, len(asked))
	var all sync.WaitGroup
	for i, r := range asked {
		all.Go(func() { found[i] = servers(ctx, r, domains) })
	}
	all.Wait()
	for _, root := range slices.Concat(found...) {
		if !slices.Contains(out, root) {
			out = append(out, root)
		}
	}
	return out
}

func servers(ctx context.Context, r *net.Resolver, domains []string) (out []string) {
	for _, d := range domains {
		_, list, err := r.LookupSRV(ctx, "sztp", "tcp", strings.TrimSuffix(d, ".")+".")
		if err != nil {
			continue // no such service there
		}
		for _, s := range list[:min(len(list), maxList)] {
			if root, ok := rootOf(fmt.Sprintf("https://%s:%d", strings.TrimSuffix(s.Target, "."), s.Port)); ok {
				out = append(out, root)
			}
		}
	}
	return out
}
