package onboard

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"sort"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/identity/voucher"
)

// Awaited is a box that may come by way of a relay.
type Awaited struct {
	Serial string
	// Tag is another one when what the owner has to say of the box is.
	Tag [sha256.Size]byte
}

// wholeBoxes bounds the boxes of which a relay is told that asks for no pages, as those before
// them did.
const wholeBoxes = 256

// ahead tells a relay what boxes that are expected and have not come yet would be told:
// those with a voucher, of which nothing is secret.
func (s *Server) ahead(w http.ResponseWriter, r *http.Request, q identity.Greeting, by api.DeviceID) {
	page, most := q.Page, identity.AheadBoxes
	if page == nil {
		page, most = &identity.AheadPage{}, wholeBoxes
	}
	var list []Awaited
	if len(q.Attach) > 0 {
		if relay, err := api.ParseDeviceID(q.Attach[0].Device); err == nil {
			var ok bool
			if list, ok = s.cfg.Awaited(by, relay); !ok { // check: whose boxes
				fail(w, http.StatusServiceUnavailable, "operation-failed", "whether "+relay.String()+" asks by way of "+by.String()+" is not known yet")
				return
			}
		}
	}
	out := identity.Ahead{Boxes: map[string]identity.AheadBox{}}
	for _, c := range s.cfg.Makers {
		out.Makers = append(out.Makers, c.Raw)
	}
	common := s.signedBy(r.Context())
	size := 0
	list = list[sort.Search(len(list), func(i int) bool { return list[i].Serial > page.After }):]
	for i, a := range list {
		if i == most || size >= identity.AheadBytes && q.Page != nil {
			out.Next = list[i-1].Serial
			break
		}
		box, err := s.aheadOf(r.Context(), a.Serial)
		if err != nil {
			s.cfg.Log.Warn("what an expected box would be told cannot be made", "serial", a.Serial, "err", err)
		}
		if box == nil {
			continue // it has come, or is expected no more
		}
		sum := sha256.Sum256(append(common[:], a.Tag[:]...))
		tag := base64.RawURLEncoding.EncodeToString(sum[:9])
		if have, ok := page.Have[a.Serial]; ok && have == tag {
			out.Same = append(out.Same, a.Serial)
			continue
		}
		told, err := box()
		if err != nil {
			s.cfg.Log.Warn("what an expected box would be told cannot be made", "serial", a.Serial, "err", err)
			continue
		}
		if told.Tag = tag; told.named {
			told.Tag = ""
		}
		size += len(told.Answer)
		out.Boxes[a.Serial] = told.AheadBox
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the relay asks again
}

// signedBy stands for what all answers to a relay have in common: where boxes attach, and the
// owner's certificates.
func (s *Server) signedBy(ctx context.Context) [sha256.Size]byte {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(s.parents(ctx)) // a hash takes all
	for _, c := range s.cfg.Owner().Chain {
		h.Write(c.Raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// aheadBox is what one is told. named: it names a Release, whose artifact is not in the tag.
type aheadBox struct {
	identity.AheadBox
	named bool
}

// aheadOf finds an expected box, and how to make what it would be told; nil without error when
// there is nothing to tell ahead.
func (s *Server) aheadOf(ctx context.Context, serial string) (func() (*aheadBox, error), error) {
	o, err := s.cfg.Find(ctx, serial)
	if o == nil || err != nil {
		return nil, err
	}
	var spec api.ExpectedDeviceSpec
	var st api.ExpectedDeviceStatus
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return nil, err
	}
	if len(o.Status) > 0 {
		if err := json.Unmarshal(o.Status, &st); err != nil {
			return nil, err
		}
	}
	if spec.Voucher == "" || st.Device != "" {
		return nil, nil
	}
	return func() (*aheadBox, error) {
		spec.Code = "" // the proof of a code belongs to the box alone
		box := aheadBox{named: spec.Release != ""}
		var first *beginning
		if s.cfg.First != nil && len(spec.Redirect) == 0 && spec.Release == "" {
			first = &beginning{Serial: spec.Serial, Made: s.cfg.Now().Unix()}
			first.Items, box.Refs = s.cfg.First(o, &spec)
		}
		a, err := s.answer(ctx, api.DeviceID{}, o, &spec, s.parents(ctx), first)
		if err != nil {
			return nil, err
		}
		box.Answer, err = voucher.Output(a)
		return &box, err
	}, nil
}
