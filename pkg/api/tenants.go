package api

import "slices"

// PlatformTenant is the root of the tree of tenants. It is always there, and no object
// stands for it.
const PlatformTenant = "platform"

// TenantTree tells of each tenant the one above it. PlatformTenant and DefaultTenant, which
// hangs below it, are in every tree, also where nobody put them in.
type TenantTree map[string]string

// maxTenantDepth bounds the levels below the root: nobody needs more, and every question
// about a tenant climbs them.
const maxTenantDepth = 16

// ParentOf is the tenant above another that a spec names; empty in the spec means the root.
func (s *TenantSpec) ParentOf() string {
	if s.Parent == "" {
		return PlatformTenant
	}
	return s.Parent
}

// Has reports whether a tenant is in the tree.
func (t TenantTree) Has(name string) bool {
	_, ok := t[name]
	return ok || name == PlatformTenant || name == DefaultTenant
}

// above is the parent of a tenant; "" above the root and above what is not there.
func (t TenantTree) above(name string) string {
	switch name {
	case PlatformTenant:
		return ""
	case DefaultTenant:
		return PlatformTenant
	}
	return t[name]
}

// Path lists a tenant and all above it, the root last. It is nil for a tenant that is not
// there, and for one whose way up does not reach the root.
func (t TenantTree) Path(name string) []string {
	if !t.Has(name) {
		return nil
	}
	var path []string
	for at := name; at != ""; at = t.above(at) {
		if len(path) > len(t)+2 { // a loop, which Place does not let in
			return nil
		}
		path = append(path, at)
	}
	if path[len(path)-1] != PlatformTenant {
		return nil
	}
	return path
}

// Within reports whether a tenant is another or lies below it.
func (t TenantTree) Within(name, top string) bool { return slices.Contains(t.Path(name), top) }

// Below lists the children of a tenant, by name.
func (t TenantTree) Below(name string) (out []string) {
	for _, child := range t.Names() {
		if t.above(child) == name {
			out = append(out, child)
		}
	}
	return out
}

// Names lists all tenants, by name.
func (t TenantTree) Names() []string {
	names := []string{DefaultTenant, PlatformTenant}
	for name := range t {
		if name != DefaultTenant && name != PlatformTenant {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Place says whether a tenant may hang below another: the error is of code Invalid and
// names the field of the Tenant. It changes nothing.
func (t TenantTree) Place(name, parent string) error {
	const field = "spec.parent"
	switch {
	case name == PlatformTenant:
		return &Error{Code: Invalid, Field: "metadata.name", Message: PlatformTenant + " is the root of all tenants and always there", Remedy: "choose another name"}
	case name == DefaultTenant && parent != PlatformTenant:
		return &Error{Code: Invalid, Field: field, Message: DefaultTenant + " is always there, below " + PlatformTenant, Remedy: "leave spec.parent out"}
	case !t.Has(parent):
		return &Error{Code: Invalid, Field: field, Message: "there is no tenant " + parent, Remedy: "mend the name, or apply a Tenant " + parent + " first or along with it"}
	case parent == name:
		return &Error{Code: Invalid, Field: field, Message: name + " cannot lie below itself", Remedy: "name another parent"}
	}
	path := t.Path(parent)
	if len(path) == 0 || slices.Contains(path, name) { // none: the tree was given with the loop in it
		return &Error{Code: Invalid, Field: field, Message: parent + " lies below " + name + " itself", Remedy: "name a parent outside of it, or move " + parent + " first"}
	}
	if deep := len(path) + t.height(name); deep > maxTenantDepth {
		return &Error{Code: Invalid, Field: field, Message: "the tenants would be more than 16 levels deep", Remedy: "name a parent nearer to " + PlatformTenant}
	}
	return nil
}

// height counts the levels from a tenant down to its lowest.
func (t TenantTree) height(name string) int {
	high := 1
	for below := range t {
		if at := slices.Index(t.Path(below), name); at >= high {
			high = at + 1
		}
	}
	return high
}
