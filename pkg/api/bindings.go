package api

import (
	"net/url"
	"slices"
	"strings"
)

// The kinds that say who may what.
const (
	KindServiceAccount = "ServiceAccount"
	KindRoleBinding    = "RoleBinding"
)

// Roles are what a RoleBinding can give; what each may do is the core's to say
// (pkg/core/access/policies.cedar).
var Roles = []string{RoleViewer, "operator", "tenant-admin", "billing", RoleRescuer, RolePlatformAdmin}

// The roles that the accounts of the core's first day have.
const (
	RoleViewer        = "viewer"
	RoleRescuer       = "rescuer"
	RolePlatformAdmin = "platform-admin"
)

// ServiceAccountSpec describes a program, or a person by a token, that acts for a tenant.
type ServiceAccountSpec struct {
	DisplayName string `json:"displayName,omitempty"`
	// Disabled takes none of its tokens.
	Disabled bool `json:"disabled,omitempty"`
}

// RoleBindingSpec gives a role to service accounts, people and groups: in the binding's tenant with all tenants
// below it, or in one site or fleet of that tenant.
type RoleBindingSpec struct {
	// Role is viewer, operator, tenant-admin, billing, rescuer or platform-admin.
	Role     string    `json:"role"`
	Subjects []Subject `json:"subjects"`
	// Site and Fleet narrow the binding to that site, or that fleet, and its devices.
	Site  string `json:"site,omitempty"`
	Fleet string `json:"fleet,omitempty"`
}

// Subject is who is bound: a service account, a person, or the members of a group.
type Subject struct {
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Tenant is the account's. Empty: the binding's own.
	Tenant string `json:"tenant,omitempty"`
	// Person is the uid of a person, never a name or an e-mail: those may become another's.
	Person string `json:"person,omitempty"`
	// Group is what an identity provider says that people belong to, Issuer that provider.
	Group  string `json:"group,omitempty"`
	Issuer string `json:"issuer,omitempty"`
}

// Account is the service account that is meant by a binding of a tenant.
func (s Subject) Account(tenant string) Key {
	if s.Tenant != "" {
		tenant = s.Tenant
	}
	return Key{Tenant: tenant, Kind: KindServiceAccount, Name: s.ServiceAccount}
}

func validateServiceAccount(s *ServiceAccountSpec, f *findings) {
	validateText(s.DisplayName, "spec.displayName", f)
}

func validateRoleBinding(s *RoleBindingSpec, f *findings) {
	if !slices.Contains(Roles, s.Role) {
		f.addf("spec.role", "the roles are "+strings.Join(Roles, ", "), "there is no role %s", quote(s.Role))
	}
	if len(s.Subjects) == 0 || len(s.Subjects) > maxListed {
		f.addf("spec.subjects", "name 1 to 1024 service accounts, people or groups", "there are %d subjects", len(s.Subjects))
		return
	}
	for i := range s.Subjects {
		s.Subjects[i].validate(index("spec.subjects", i), f)
	}
	if s.Site != "" {
		validateName(s.Site, "spec.site", f)
	}
	if s.Fleet != "" {
		validateName(s.Fleet, "spec.fleet", f)
	}
	if s.Site != "" && s.Fleet != "" {
		f.add("spec.fleet", "a binding is narrowed by a site or by a fleet", "make two bindings, or leave one out")
	}
}

// validate holds a subject to one who is meant.
func (s *Subject) validate(at string, f *findings) {
	const one = "give serviceAccount (with tenant), person, or group with issuer"
	switch {
	case s.Person != "":
		if s.ServiceAccount+s.Tenant+s.Group+s.Issuer != "" {
			f.add(join(at, "person"), "a subject is one person, and nothing beside", one)
		}
		validateName(s.Person, join(at, "person"), f)
	case s.Group != "" || s.Issuer != "":
		if s.ServiceAccount+s.Tenant != "" {
			f.add(join(at, "group"), "a subject is one group, and nothing beside", one)
		}
		validateText(s.Group, join(at, "group"), f)
		if s.Group == "" {
			f.add(join(at, "group"), "no group is named", one)
		}
		if u, err := url.Parse(s.Issuer); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			f.add(join(at, "issuer"), "not an issuer", "write the provider's address as its tokens have it, https://…")
		}
	default:
		validateName(s.ServiceAccount, join(at, "serviceAccount"), f)
		if s.Tenant != "" {
			validateName(s.Tenant, join(at, "tenant"), f)
		}
	}
}
