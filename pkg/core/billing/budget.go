package billing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/core/store"
)

// CheckBudgets looks at all budgets: notes in their status what is spent, and tells of each
// threshold that is crossed, once a month, however often and by however many processes it runs.
func (r *Room) CheckBudgets(ctx context.Context) error {
	list, _, _, err := r.cfg.Store.List(ctx, store.Query{Kind: api.KindBudget})
	if err != nil {
		return err
	}
	type known struct {
		a   *Account
		p   Period
		now *rating
		err error
	}
	tenants := map[string]known{}
	var faults []error
	for _, o := range list {
		tenant := o.Metadata.Tenant
		k, ok := tenants[tenant]
		if !ok {
			k.a, k.p, k.now, k.err = r.soFar(ctx, tenant, "", OfEntry)
			tenants[tenant] = k
		}
		if k.err == nil {
			k.err = r.checkBudget(ctx, o, k.a, k.p, k.now)
		}
		if k.err != nil {
			faults = append(faults, fmt.Errorf("budget %s: %w", o.Key(), k.err))
		}
	}
	return errors.Join(faults...)
}

func (r *Room) checkBudget(ctx context.Context, o *api.Object, a *Account, p Period, now *rating) error {
	var spec api.BudgetSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		return err
	}
	digits, err := digitsOf(a.Terms.Currency)
	if err != nil {
		return err
	}
	spent := Money{spentOf(&spec, now.lines), digits}
	status := api.BudgetStatus{Period: p.Name, Currency: a.Terms.Currency, Spent: spent.String(), As: r.cfg.Now().UTC()}
	if a.Problem != nil {
		status.Problem = a.Problem.Message
	} else if status.Percent, err = percentOf(spent, spec.Amount); err != nil {
		return err
	}
	for _, threshold := range spec.AllThresholds() {
		if a.Problem != nil || status.Percent < threshold { // check: below its threshold
			continue
		}
		if err := r.fire(ctx, o, a, p, threshold, &status); err != nil {
			return err
		}
	}
	if status.Fired, err = r.firedOf(ctx, o.Metadata.UID, p.Name); err != nil {
		return err
	}
	var was api.BudgetStatus
	if json.Unmarshal(o.Status, &was) == nil && was.Period == status.Period && was.Spent == status.Spent && was.Problem == status.Problem && was.Percent == status.Percent && slices.Equal(was.Fired, status.Fired) {
		return nil
	}
	return r.cfg.Store.PutStatus(ctx, o.Key(), status)
}

// spentOf sums up the parts of lines that a budget is about.
func spentOf(spec *api.BudgetSpec, lines []Line) (minor int64) {
	for i := range lines {
		for j := range lines[i].Parts {
			of := &lines[i].Parts[j].Of
			if (spec.Site == "" || spec.Site == of.Site) && (spec.Fleet == "" || spec.Fleet == of.Fleet) && (spec.App == "" || spec.App == of.AppName) &&
				(spec.Device == "" || spec.Device == of.DeviceName) && (spec.Labels == nil || spec.Labels.Matches(of.labels())) {
				minor += lines[i].Parts[j].Net.Minor
			}
		}
	}
	return minor
}

// percentOf is how many whole percents of an amount are spent, rounded down.
func percentOf(spent Money, amount string) (int, error) {
	of, ok := new(big.Rat).SetString(amount)
	is, ok2 := new(big.Rat).SetString(spent.String())
	if !ok || !ok2 || of.Sign() <= 0 {
		return 0, api.Errorf(api.Invalid, "%q is no amount of a budget", amount)
	}
	is.Quo(is.Mul(is, big.NewRat(100, 1)), of)
	n := new(big.Int).Quo(is.Num(), is.Denom())
	if !n.IsInt64() || n.Int64() > 1_000_000 {
		return 1_000_000, nil
	}
	return int(n.Int64()), nil
}

func firedRef(budget, period string, threshold int) string {
	return fmt.Sprintf("%s %s %d", budget, period, threshold)
}

// fire tells of a threshold, unless it was told of in the period: the row is the claim.
func (r *Room) fire(ctx context.Context, o *api.Object, a *Account, p Period, threshold int, s *api.BudgetStatus) error {
	known, err := r.firedOf(ctx, o.Metadata.UID, p.Name)
	if err != nil || slices.Contains(known, threshold) {
		return err
	}
	mine := false
	err = r.write(ctx, func(tx *database.Tx) error {
		mine = false
		res, err := tx.ExecContext(ctx, `INSERT INTO bill_fired (budget, period, threshold, at, spent) VALUES (?,?,?,?,?) ON CONFLICT (budget, period, threshold) DO NOTHING`,
			o.Metadata.UID, p.Name, threshold, r.cfg.Now().UnixMilli(), s.Spent)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		mine = true
		return r.append(ctx, tx, &Entry{Kind: entryBudget, Tenant: a.UID, Ref: firedRef(o.Metadata.UID, p.Name, threshold), Digest: digestOf([]byte(s.Spent))})
	})
	if err != nil || !mine {
		return err
	}
	if r.cfg.Fired != nil {
		r.cfg.Fired(o.Key(), threshold, s)
	}
	r.cfg.Log.Warn("a budget's threshold is crossed", "budget", o.Key().String(), "threshold", threshold, "spent", s.Spent, "currency", s.Currency, "period", p.Name)
	return r.keepHead(ctx)
}

func (r *Room) firedOf(ctx context.Context, budget, period string) (out []int, err error) {
	rows, err := r.db.QueryContext(ctx, `SELECT threshold FROM bill_fired WHERE budget = ? AND period = ? ORDER BY threshold`, budget, period)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, rows.Err()
}
