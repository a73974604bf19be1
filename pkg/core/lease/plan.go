package lease

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
)

// row is a lease as the database has it.
type row struct {
	name, holder string
	fence        uint64
	out          bool // its time has run out, by the database's clock
}

// view is what a replica sees when it has renewed what it holds.
type view struct {
	live []Replica // whose time has not run out, this one too
	rows map[string]row
}

// replicaOf names the replica of which a holder is one life.
func replicaOf(holder string) string {
	name, _, _ := strings.Cut(holder, lifeMark)
	return name
}

// free tells whether a holder may take a lease: nobody has it, its time has run out, or an
// earlier life of the same replica has it, which has ended.
func (r row) free(holder string) bool {
	return r.holder == "" || r.out || r.holder != holder && replicaOf(r.holder) == replicaOf(holder)
}

// plan decides which leases of a duty a holder gives back, and which it tries to take. What is
// not spread stays with whom it is.
func plan(holder string, v view, d *Duty) (give, take []string) {
	var of map[string]string
	if d.Spread {
		names := make([]string, len(v.live))
		for i, r := range v.live {
			names[i] = r.Name
		}
		of = spread(d.Names, names)
	}
	for _, name := range d.Names {
		r, there := v.rows[name]
		mine := there && r.holder == holder
		wanted := of == nil || of[name] == replicaOf(holder)
		switch {
		case mine && !wanted:
			give = append(give, name)
		case !mine && wanted && (!there || r.free(holder)):
			take = append(take, name)
		}
	}
	return give, take
}

// spread divides names among replicas: each has as many as any other, or one more. All who
// see the same replicas find the same.
func spread(names, live []string) map[string]string {
	of := make(map[string]string, len(names))
	if len(live) == 0 {
		return of
	}
	load := make(map[string]int, len(live))
	each, more := len(names)/len(live), len(names)%len(live)
	for _, name := range names {
		ranked := slices.Clone(live)
		slices.SortFunc(ranked, func(a, b string) int {
			return cmp.Or(cmp.Compare(rank(name, b), rank(name, a)), strings.Compare(a, b))
		})
		for _, r := range ranked {
			if load[r] < each || load[r] == each && more > 0 {
				if load[r] == each {
					more--
				}
				load[r]++
				of[name] = r
				break
			}
		}
	}
	return of
}

func rank(name, replica string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name + "\x00" + replica))
	return h.Sum64()
}
