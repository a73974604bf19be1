package main

import (
	"context"

	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/roster"
	"tributary.dev/tributary/pkg/identity"
)

// registrar lets the certificate authority ask the roster, in their two sets of words.
type registrar struct{ c *core }

// Enrol implements ca.Registrar.
func (r registrar) Enrol(ctx context.Context, a ca.Application) (ca.Grant, error) {
	var g ca.Grant
	var err error
	if a.TokenID == identity.ExpectedToken {
		g, err = r.c.enrolExpected(ctx, a)
	} else {
		var by roster.Grant
		by, err = r.c.roster.Enrol(ctx, applicant(a))
		g = ca.Grant(by)
	}
	if err == nil && g.Approved {
		err = r.c.admit(ctx, a.Device)
	}
	return g, err
}

// Renew implements ca.Registrar. A new seal key has the device's secrets sealed anew.
func (r registrar) Renew(ctx context.Context, a ca.Application) (ca.Grant, error) {
	g, err := r.c.roster.Renew(ctx, applicant(a))
	if err == nil {
		err = r.c.touch(ctx, a.Device)
	}
	return ca.Grant(g), err
}

func applicant(a ca.Application) roster.Applicant {
	return roster.Applicant{TokenID: a.TokenID, Secret: a.Secret, Device: a.Device, PublicKey: a.PublicKey, SealKey: a.SealKey,
		Name: a.Name, Hardware: a.Hardware, Labels: a.Labels, Relay: a.Relay, Addresses: a.Addresses, Issued: a.Issued, Tenant: a.Tenant}
}
