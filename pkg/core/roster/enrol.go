package roster

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity"
)

// Applicant is a box that asks to come in, or (Renew) for a new certificate. Its
// request proved possession of the device key.
type Applicant struct {
	TokenID, Secret    string
	Device             api.DeviceID
	PublicKey, SealKey []byte // PKIX, DER
	Name               string // wished for
	Hardware           api.Hardware
	Labels             map[string]string
	Relay              bool
	Addresses          []string
	// Issued is when the certificate began that a box shows which asks for another, and
	// Tenant whom it names.
	Issued time.Time
	Tenant string
}

// Grant is the yes.
type Grant struct {
	Name, Tenant string
	Labels       map[string]string
	Approved     bool
}

// tokenState is the status of a JoinToken as it is stored. The server shows of it what
// api.JoinTokenStatus holds.
type tokenState struct {
	Used int `json:"used"`
	// Hash is the SHA-256 of the secret, which has 128 random bits.
	Hash []byte `json:"hash"`
}

// MintToken gives a new JoinToken its secret: the status to store, and the whole token
// to show once. An existing one keeps what it has (nil, "").
func (r *Roster) MintToken(old, o *api.Object) (status any, token func(uid string) string, err error) {
	if old != nil {
		return nil, nil, nil
	}
	t, err := identity.NewJoinToken("pending", r.cfg.Fingerprint, r.cfg.Random)
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.Sum256([]byte(t.Secret))
	return tokenState{Hash: hash[:]}, func(uid string) string { t.ID = uid; return t.String() }, nil
}

// Enrol lets a box in: it checks the token, uses it up, and creates the device. A box
// that this token let in before is welcome again and uses nothing up.
func (r *Roster) Enrol(ctx context.Context, a Applicant) (Grant, error) {
	return r.enrol(ctx, a, func() (*api.Object, error) { return r.token(ctx, a.TokenID) }, decide, "join token")
}

// EnrolExpected lets a box in that proved to be the one of an ExpectedDevice, which find
// reads; it comes approved.
func (r *Roster) EnrolExpected(ctx context.Context, a Applicant, find func() (*api.Object, error)) (Grant, error) {
	return r.enrol(ctx, a, find, decideExpected, "expectation")
}

type decision func(Applicant, *api.Object, presence, time.Time) (*plan, error)

func (r *Roster) enrol(ctx context.Context, a Applicant, find func() (*api.Object, error), decide decision, by string) (Grant, error) {
	// One at a time: the store writes one at a time in any case, and of many that read the
	// same token all but the first would do their work in vain, again and again.
	r.entrance.Lock()
	defer r.entrance.Unlock()
	for try := 0; ; try++ {
		token, err := find()
		if err != nil {
			return Grant{}, err
		}
		seen, err := r.present(ctx, a)
		if err != nil {
			return Grant{}, err
		}
		plan, err := decide(a, token, seen, r.cfg.Now())
		if err != nil {
			return Grant{}, err
		}
		if plan.write.Object != nil {
			event := r.event(ctx, a.Device, plan.grant.Name, store.EventEnrolled, "by "+by+" "+token.Metadata.Name+" to tenant "+plan.grant.Tenant)
			plan.write.Event = &event
		}
		err = r.cfg.Store.Enrol(ctx, plan.write)
		if err != nil && api.CodeOf(err) == api.Conflict && try < maxTries {
			continue // a token or a name went to another in between
		}
		if err != nil {
			return Grant{}, err
		}
		return plan.grant, r.admitted(plan)
	}
}

// maxTries bounds how often an enrolment begins anew because others came first.
const maxTries = 100

// token finds a JoinToken by its UID.
func (r *Roster) token(ctx context.Context, uid string) (*api.Object, error) {
	tokens, _, _, err := r.cfg.Store.List(ctx, store.Query{Kind: api.KindJoinToken})
	if err != nil {
		return nil, err
	}
	for _, t := range tokens {
		if t.Metadata.UID == uid {
			return t, nil
		}
	}
	return nil, nil
}

// presence is what is known of an applicant before the decision.
type presence struct {
	box    *store.Box
	object *api.Object // the Device object of the box, when it is known
	// taken tells whether a name belongs to another device of the tenant.
	taken func(tenant, name string) bool
}

func (r *Roster) present(ctx context.Context, a Applicant) (presence, error) {
	p := presence{taken: func(string, string) bool { return false }}
	r.mu.RLock()
	b := r.boxes[a.Device]
	r.mu.RUnlock()
	if b != nil {
		o, err := r.cfg.Store.Get(ctx, b.key)
		if err != nil {
			return p, err
		}
		p.box, p.object = &store.Box{Device: a.Device, Tenant: b.key.Tenant, Name: b.key.Name, PublicKey: a.PublicKey, SealKey: a.SealKey, Token: b.token}, o
		return p, nil
	}
	p.taken = func(tenant, name string) bool {
		_, err := r.cfg.Store.Get(ctx, api.Key{Tenant: tenant, Kind: api.KindDevice, Name: name})
		return err == nil
	}
	return p, nil
}

// plan is what an enrolment will write and answer.
type plan struct {
	write store.Enrolment
	grant Grant
}

var errToken = &api.Error{Code: api.Unauthorized, Message: "the join token is not known, expired, or used up", Remedy: "make another: `edgectl token create`"}

// decide is the whole judgement over an applicant.
func decide(a Applicant, token *api.Object, p presence, now time.Time) (*plan, error) {
	if token == nil {
		return nil, errToken
	}
	var spec api.JoinTokenSpec
	var state tokenState
	if err := json.Unmarshal(token.Spec, &spec); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(token.Status, &state); err != nil {
		return nil, err
	}
	hash := sha256.Sum256([]byte(a.Secret))
	if subtle.ConstantTimeCompare(hash[:], state.Hash) != 1 {
		return nil, errToken
	}
	if p.box != nil {
		return again(token, p)
	}
	if spec.Expires != nil && !now.Before(*spec.Expires) || spec.Uses > 0 && state.Used >= spec.Uses {
		return nil, errToken
	}
	device := api.DeviceSpec{Site: spec.Site, Approved: spec.AutoApprove}
	state.Used++
	out, err := newcomer(a, token.Metadata.Tenant, device, spec.Labels, p)
	if err != nil {
		return nil, err
	}
	out.write.Box.Token, out.write.Token, out.write.TokenStatus = token.Metadata.UID, token, state
	return out, nil
}

// newcomer writes down a box that was not known, with labels that it is given.
func newcomer(a Applicant, tenant string, device api.DeviceSpec, given map[string]string, p presence) (*plan, error) {
	raw, err := json.Marshal(device)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{}
	for k, v := range given {
		labels[k] = v
	}
	for k, v := range a.Labels {
		if strings.HasPrefix(k, api.Reserved) {
			labels[k] = v // what a box found out about itself; other labels are people's
		}
	}
	name := freeName(a, func(name string) bool { return p.taken(tenant, name) })
	hardware := a.Hardware
	return &plan{
		write: store.Enrolment{
			Box:    store.Box{Device: a.Device, Tenant: tenant, Name: name, PublicKey: a.PublicKey, SealKey: a.SealKey},
			Object: &api.Object{APIVersion: api.Version, Kind: api.KindDevice, Metadata: api.Meta{Tenant: tenant, Name: name, Labels: labels}, Spec: raw},
			Status: api.DeviceStatus{ID: a.Device, Relay: a.Relay, Addresses: a.Addresses, Hardware: &hardware},
		},
		grant: Grant{Name: name, Tenant: tenant, Labels: labels, Approved: device.Approved},
	}, nil
}

// again answers a box that is known: its first answer may have been lost.
func again(token *api.Object, p presence) (*plan, error) {
	var spec api.DeviceSpec
	if err := json.Unmarshal(p.object.Spec, &spec); err != nil {
		return nil, err
	}
	if spec.Retired {
		return nil, &api.Error{Code: api.Forbidden, Message: "the device " + p.box.Name + " is retired", Remedy: "delete the box's keys, then let it enrol anew"}
	}
	if p.box.Token != token.Metadata.UID {
		return nil, &api.Error{Code: api.Conflict, Message: "the box came in as " + p.box.Name + " by another join token", Remedy: "start edged without a token: it is enrolled"}
	}
	return &plan{write: store.Enrolment{Box: *p.box},
		grant: Grant{Name: p.box.Name, Tenant: p.box.Tenant, Labels: p.object.Metadata.Labels, Approved: spec.Approved}}, nil
}

// freeName picks the name of a device: the one it wishes when that is a name and free,
// else with the beginning of its id, else the id.
func freeName(a Applicant, taken func(string) bool) string {
	id := a.Device.String()
	wish := clean(a.Name)
	if wish == "" {
		return id
	}
	if !taken(wish) {
		return wish
	}
	if longer := fmt.Sprintf("%.56s-%.6s", wish, id); !taken(longer) {
		return longer
	}
	return id
}

// clean makes a DNS label of a wish, or nothing.
func clean(wish string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(wish) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else {
			b.WriteByte('-')
		}
		if b.Len() == 63 {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}

// admitted takes the box into memory, before its first message can arrive.
func (r *Roster) admitted(p *plan) error {
	e, err := open(p.write.Box)
	if err != nil {
		return err
	}
	id := p.write.Box.Device
	r.mu.Lock()
	old := r.boxes[id]
	e.approved, e.seen = p.grant.Approved, true
	before, after := old != nil && old.active(), e.active()
	r.boxes[id], r.names[e.key] = e, id
	r.mu.Unlock()
	r.tell(id, before, after)
	return nil
}

// Renew lets a known box have a new certificate, and notes its seal key.
func (r *Roster) Renew(ctx context.Context, a Applicant) (Grant, error) {
	p, err := r.present(ctx, a)
	if err != nil {
		return Grant{}, err
	}
	if p.box == nil {
		return r.readmit(ctx, a)
	}
	plan, err := again(&api.Object{Metadata: api.Meta{UID: p.box.Token}}, p)
	if err != nil {
		return Grant{}, err
	}
	if err := r.cfg.Store.Enrol(ctx, plan.write); err != nil {
		return Grant{}, err
	}
	return plan.grant, r.admitted(plan)
}

// issuedEarly is how much earlier than it was made a certificate may begin.
const issuedEarly = 24 * time.Hour

// readmit takes a box in that has a certificate of this core and that the core does not
// know, because it was restored from a backup which is older than the box's enrolment.
// It waits for a person: what was decided about it since is lost with the rest.
func (r *Roster) readmit(ctx context.Context, a Applicant) (Grant, error) {
	if r.cfg.Restored.IsZero() || a.Issued.Before(r.cfg.Restored.Add(-issuedEarly)) {
		return Grant{}, &api.Error{Code: api.Forbidden, Message: "this core does not know the box", Remedy: "let it enrol with a join token"}
	}
	tenant := api.Key{Tenant: api.DefaultTenant, Kind: api.KindTenant, Name: a.Tenant}
	if _, err := r.cfg.Store.Get(ctx, tenant); err != nil && a.Tenant != api.DefaultTenant {
		return Grant{}, &api.Error{Code: api.Forbidden, Message: "the box belongs to tenant " + a.Tenant + ", which this core does not have since it was restored",
			Remedy: "apply the Tenant " + a.Tenant + " again", Err: err}
	}
	source := &api.Object{Metadata: api.Meta{Name: r.cfg.Restored.UTC().Format(time.RFC3339)}}
	decide := func(a Applicant, _ *api.Object, p presence, _ time.Time) (*plan, error) {
		if p.box != nil {
			return again(&api.Object{Metadata: api.Meta{UID: p.box.Token}}, p)
		}
		return newcomer(a, a.Tenant, api.DeviceSpec{}, nil, p)
	}
	return r.enrol(ctx, a, func() (*api.Object, error) { return source, nil }, decide, "a certificate newer than the backup of")
}
