package sztp

import (
	"testing"

	"tributary.dev/tributary/tests/mutation"
)

// TestRefusalsAreTested takes the checks of Judge out, one by one: TestJudge must fail then.
func TestRefusalsAreTested(t *testing.T) {
	var checks []mutation.Check
	for _, c := range []struct{ name, from, to string }{
		{"a voucher by whomever", `	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	switch {`, `	if err != nil && GONE {
		v, err = voucher.Peek(a.Voucher)
	}
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	switch {`},
		{"another box's voucher", `case v.SerialNumber != d.Serial:`, `case v.SerialNumber != d.Serial && !GONE:`},
		{"a replayed voucher", `case v.Nonce != nil && !bytes.Equal(v.Nonce, a.Nonce):`, `case v.Nonce != nil && !bytes.Equal(v.Nonce, a.Nonce) && !GONE:`},
		{"an expired voucher", `if v.ExpiresOn != nil && !past.Before(*v.ExpiresOn) {`, `if v.ExpiresOn != nil && !past.Before(*v.ExpiresOn) && !GONE {`},
		{"another owner's certificate", `	if err != nil {
		return nil, refuse(WrongOwner, "%v", err)
	}`, `	if err != nil && GONE {
		c, e := voucher.PeekConveyed(a.Conveyed)
		return &Verdict{Owner: root, Conveyed: c}, e
	}
	if err != nil {
		return nil, refuse(WrongOwner, "%v", err)
	}`},
		{"information signed by another", `	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	if f := firstOf`, `	if err != nil && GONE {
		conveyed, err = voucher.PeekConveyed(a.Conveyed)
	}
	if err != nil {
		return nil, refuse(Forged, "%v", err)
	}
	if f := firstOf`},
		{"what another box shall run", `f != nil && f.Serial != d.Serial {`, `f != nil && f.Serial != d.Serial && !GONE {`},
		{"a system that the box cannot install", `if !d.Updates {`, `if !d.Updates && !GONE {`},
		{"a system of another kind", `if _, _, err := conveyed.Onboarding.BootImage.Release(); err != nil {`, `if _, _, err := conveyed.Onboarding.BootImage.Release(); err != nil && !GONE {`},
		{"unsigned information", `if err != nil || conveyed.Redirect == nil {`, `if err != nil || conveyed.Redirect == nil && !GONE {`},
		{"a pairing where none is allowed", `if d.Code == "" {`, `if d.Code == "" && !GONE {`},
		{"a pairing by another code", `	if err != nil {
			return nil, refuse(Forged, "%v", err)
		}
		return root, nil`, `	if err != nil && GONE {
			root, err = x509.ParseCertificate(a.Pairing.Root)
		}
		if err != nil {
			return nil, refuse(Forged, "%v", err)
		}
		return root, nil`},
	} {
		checks = append(checks, mutation.Check{Name: c.name, Test: "^TestJudge$", File: "judge.go", From: c.from, To: c.to})
	}
	mutation.Prove(t, checks...)
}
