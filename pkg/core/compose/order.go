package compose

import (
	"sort"

	"tributary.dev/tributary/pkg/api"
)

// topological orders services so that each comes after those it depends on, by name
// where nothing else decides. With a cycle it returns the services of one, in the order
// in which they wait for each other, starting with the first by name.
func topological(services map[string]*api.Service) (order, cycle []string) {
	waits := make(map[string]int, len(services))
	needed := map[string][]string{}
	for name, s := range services {
		waits[name] += 0
		for _, d := range s.DependsOn {
			if services[d.Service] != nil {
				waits[name]++
				needed[d.Service] = append(needed[d.Service], name)
			}
		}
	}
	var ready []string
	for name, n := range waits {
		if n == 0 {
			ready = append(ready, name)
		}
	}
	for len(ready) > 0 {
		sort.Strings(ready)
		name := ready[0]
		ready = ready[1:]
		order = append(order, name)
		delete(waits, name)
		for _, next := range needed[name] {
			if waits[next]--; waits[next] == 0 {
				ready = append(ready, next)
			}
		}
	}
	if len(waits) == 0 {
		return order, nil
	}
	return nil, findCycle(services, waits)
}

// findCycle follows first dependencies among the services that still wait until one
// comes twice: each of them waits for another of them, so that must happen.
func findCycle(services map[string]*api.Service, waits map[string]int) []string {
	at := keys(waits)[0]
	seen := map[string]int{}
	var trail []string
	for {
		if start, again := seen[at]; again {
			return rotate(trail[start:])
		}
		seen[at] = len(trail)
		trail = append(trail, at)
		for _, d := range services[at].DependsOn {
			if _, stuck := waits[d.Service]; stuck {
				at = d.Service
				break
			}
		}
	}
}

func rotate(cycle []string) []string {
	least := 0
	for i := range cycle {
		if cycle[i] < cycle[least] {
			least = i
		}
	}
	return append(append([]string(nil), cycle[least:]...), cycle[:least]...)
}
