package compose

import (
	"fmt"
	"sort"

	"tributary.dev/tributary/pkg/api"
)

// Claim says who publishes a port of the box.
type Claim struct{ App, Service string }

// Clash is a port of the box that two services publish.
type Clash struct {
	Port string // "tcp port 8080", with the address where one is given
	A, B Claim
}

func (c Clash) String() string {
	return fmt.Sprintf("%s is published by %s/%s and by %s/%s", c.Port, c.A.App, c.A.Service, c.B.App, c.B.Service)
}

// Clashes finds the ports of one device that several of its apps publish, in a fixed
// order. Ports on different addresses do not clash; no address means all of them.
// Services on the host's network open ports that their files do not tell.
func Clashes(bundles []*api.Bundle) []Clash {
	type claim struct {
		Claim
		ip string
	}
	type key struct {
		protocol string
		port     int
	}
	sorted := append([]*api.Bundle(nil), bundles...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].App < sorted[j].App })
	taken := map[key][]claim{}
	var clashes []Clash
	for _, b := range sorted {
		for _, s := range b.Services {
			for _, p := range s.Ports {
				k, mine := key{p.Protocol, p.Host}, claim{Claim{b.App, s.Name}, p.HostIP}
				for _, other := range taken[k] {
					if other.ip == mine.ip || other.ip == "" || mine.ip == "" {
						clashes = append(clashes, Clash{portText(p), other.Claim, mine.Claim})
						break
					}
				}
				taken[k] = append(taken[k], mine)
			}
		}
	}
	return clashes
}

func portText(p api.Port) string {
	text := fmt.Sprintf("%s port %d", p.Protocol, p.Host)
	if p.HostIP != "" {
		text += " of " + p.HostIP
	}
	return text
}

func clashesWithin(b *api.Bundle) []Clash { return Clashes([]*api.Bundle{b}) }
