package insight

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// maxNamed bounds the devices that an incident names.
const maxNamed = 100

// cut raises or updates the incidents of a cut: one for each tenant that has devices behind it, since
// none may learn of another's.
func (d *decision) cut(c Cut) {
	of := map[string][]Node{}
	for _, id := range c.Devices {
		n := d.nodes[id]
		of[n.Key.Tenant] = append(of[n.Key.Tenant], n)
	}
	for _, tenant := range slices.Sorted(maps.Keys(of)) {
		key := api.Key{Tenant: tenant, Kind: api.KindIncident, Name: nameOf("link", tenant, c.Child[:], moment(c.Since))}
		i, known := d.is[key]
		if i.Spec.Closed {
			continue
		}
		i.Status.State, i.Status.Closed, i.Status.Why = api.IncidentOpen, nil, "" // a cut further up, of which it was part, may be mended
		if !known {
			i = Incident{Key: key, Status: api.IncidentStatus{State: api.IncidentOpen, Cause: api.CauseLink, Since: c.Since.UTC(), Last: c.Since.UTC(), Link: &api.IncidentLink{ID: c.Child, Parent: d.name(tenant, c.Parent), Child: d.name(tenant, c.Child)}}}
		}
		s := &i.Status
		names, sites := slices.Clone(s.Devices), slices.Clone(s.Sites)
		for _, n := range of[tenant] {
			names = append(names, n.Key.Name)
			if n.Site != "" {
				sites = append(sites, n.Site)
			}
		}
		slices.Sort(names)
		slices.Sort(sites)
		names, sites = slices.Compact(names), slices.Compact(sites)
		s.Count = max(s.Count, len(names))
		s.Devices, s.Sites = names[:min(len(names), maxNamed)], sites[:min(len(sites), maxNamed)]
		s.Message = d.says(tenant, c, s.Count, len(sites))
		d.is[key] = i
	}
}

// says explains a cut to a tenant.
func (d *decision) says(tenant string, c Cut, devices, sites int) string {
	at := ""
	if sites > 0 {
		at = " at " + counted(sites, "site", "sites")
	}
	if devices == 1 && len(c.Devices) == 1 {
		return fmt.Sprintf("nothing comes from %s%s: it is off, or the %s is cut", d.name(tenant, c.Child), at, d.link(tenant, c))
	}
	return fmt.Sprintf("the %s is cut, or what is below it is off: nothing comes from %s%s", d.link(tenant, c), counted(devices, "device", "devices"), at)
}

func counted(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// link names a link as far as a tenant knows its ends.
func (d *decision) link(tenant string, c Cut) string {
	parent, child := d.name(tenant, c.Parent), d.name(tenant, c.Child)
	if child == "" {
		return "link above"
	}
	if parent == "" {
		parent = "the relay above"
	}
	return "link " + parent + " - " + child
}

// name is a device's to its own tenant.
func (d *decision) name(tenant string, id api.DeviceID) string {
	if id.IsZero() {
		return "core"
	}
	if n, ok := d.nodes[id]; ok && n.Key.Tenant == tenant {
		return n.Key.Name
	}
	return ""
}

// found puts a finding where it belongs: to a cut that explains it, to the same number's incident, or
// to one of its own.
func (d *decision) found(f Finding) {
	n, known := d.nodes[f.Device]
	if !known {
		return // the device is gone, and with it whoever could look
	}
	for _, i := range d.sorted() {
		if i.Key.Tenant == n.Key.Tenant && d.covers(i, n, f) {
			d.count(i, f)
			return
		}
	}
	key := api.Key{Tenant: n.Key.Tenant, Kind: api.KindIncident, Name: nameOf("odd", n.Key.Tenant, f.Device[:], []byte(f.Subject), position(f.At))}
	i := Incident{Key: key, Status: api.IncidentStatus{State: api.IncidentOpen, Cause: api.CauseAnomaly, Subject: f.Subject, Devices: []string{n.Key.Name}, Count: 1, Since: f.Time.UTC(), Last: f.Time.UTC()}}
	if n.Site != "" {
		i.Status.Sites = []string{n.Site}
	}
	if _, again := d.is[key]; again {
		return // it was raised by another core, which was faster
	}
	d.count(i, f)
}

// covers tells whether an incident explains a finding.
func (d *decision) covers(i Incident, n Node, f Finding) bool {
	s := &i.Status
	if at, ok := s.Heard[f.Device]; ok && !f.At.After(at) && (s.Cause == api.CauseLink || s.Subject == f.Subject) {
		return true // it comes again
	}
	if !slices.Contains(s.Devices, n.Key.Name) {
		return false
	}
	if s.Cause == api.CauseAnomaly {
		return s.State == api.IncidentOpen && s.Subject == f.Subject
	}
	return !f.Time.Before(s.Since.Add(-around)) && (s.Closed == nil || !f.Time.After(s.Closed.Add(around)))
}

// count adds a finding to an incident, once.
func (d *decision) count(i Incident, f Finding) {
	s := &i.Status
	if at, ok := s.Heard[f.Device]; ok && !f.At.After(at) {
		return
	}
	s.Heard = maps.Clone(s.Heard)
	if s.Heard == nil {
		s.Heard = map[api.DeviceID]api.RecordPosition{}
	}
	s.Heard[f.Device] = f.At
	s.Findings++
	if f.Time.After(s.Last) {
		s.Last = f.Time.UTC()
	}
	if s.Cause == api.CauseAnomaly {
		s.Message = f.Message
	}
	d.is[i.Key] = i
}

func same(a, b api.IncidentStatus) bool { return reflect.DeepEqual(a, b) }

// nameOf is the same in whichever core: two that share a database raise one incident.
func nameOf(cause, tenant string, parts ...[]byte) string {
	h := sha256.New()
	for _, p := range append(parts, []byte(tenant)) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return cause + "-" + hex.EncodeToString(h.Sum(nil)[:5])
}

func moment(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())) }

func position(p api.RecordPosition) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, p.Epoch), p.Seq)
}
