package billing

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Cost is what a period costs so far, by something.
type Cost struct {
	Tenant   string    `json:"tenant"`
	Period   string    `json:"period"`
	By       string    `json:"by"`
	AsOf     time.Time `json:"asOf"`
	Currency string    `json:"currency"`
	Net      Money     `json:"net"`
	Rows     []CostRow `json:"rows"`
	// Blockers are what the figures lack.
	Blockers []Blocker `json:"blockers,omitempty"`
}

// CostRow is one value of what costs are told by; empty for what belongs to none, such as a
// subscription of the tenant.
type CostRow struct {
	Name              string `json:"name"`
	Net               Money  `json:"net"`
	EnergyMillijoules int64  `json:"energyMillijoules,omitempty"`
}

// CostBy is what costs can be told by, beside label:KEY.
var CostBy = []string{"tenant", "site", "fleet", "app", "service", "device", "line"}

// by reads what a part is of.
func (o *Of) by(what string, tenant string, l *Line) string {
	switch what {
	case "tenant":
		return tenant
	case "site":
		return o.Site
	case "fleet":
		return o.Fleet
	case "app":
		return o.AppName
	case "service":
		return strings.Trim(o.AppName+"/"+o.Service, "/")
	case "device":
		return cmp.Or(o.DeviceName, o.Device)
	case "line":
		return l.Text
	}
	return o.labels()[strings.TrimPrefix(what, "label:")]
}

func (o *Of) labels() (out map[string]string) {
	if o.Labels != "" {
		_ = json.Unmarshal([]byte(o.Labels), &out) // we wrote it
	}
	return out
}

// Cost tells what a period of a tenant costs as of now, before tax: what a draft would say,
// without corrections of other periods.
func (r *Room) Cost(ctx context.Context, tenant, period, by string) (*Cost, error) {
	if key, ok := strings.CutPrefix(by, "label:"); !slices.Contains(CostBy, by) && (!ok || key == "") {
		return nil, &api.Error{Code: api.Invalid, Field: "by", Message: "costs are not told by " + strconv.Quote(by), Remedy: "by " + strings.Join(CostBy, ", ") + " or label:KEY"}
	}
	a, p, now, err := r.soFar(ctx, tenant, period, OfEntry)
	if err != nil {
		return nil, err
	}
	digits, err := digitsOf(a.Terms.Currency)
	if err != nil {
		return nil, err
	}
	c := &Cost{Tenant: tenant, Period: p.Name, By: by, AsOf: r.cfg.Now().UTC(), Currency: a.Terms.Currency, Net: Money{0, digits}, Rows: []CostRow{}, Blockers: now.blockers}
	if a.Problem != nil {
		c.Blockers = append(c.Blockers, Blocker{What: a.Problem.Message, Remedy: a.Problem.Remedy})
	}
	at := map[string]int{}
	for i := range now.lines {
		l := &now.lines[i]
		c.Net = c.Net.plus(l.Net)
		for j := range l.Parts {
			name := l.Parts[j].by(by, tenant, l)
			k, ok := at[name]
			if !ok {
				k = len(c.Rows)
				at[name] = k
				c.Rows = append(c.Rows, CostRow{Name: name, Net: Money{0, digits}})
			}
			c.Rows[k].Net = c.Rows[k].Net.plus(l.Parts[j].Net)
			c.Rows[k].EnergyMillijoules += l.Parts[j].EnergyMillijoules
		}
	}
	slices.SortFunc(c.Rows, func(a, b CostRow) int {
		return cmp.Or(cmp.Compare(b.Net.Minor, a.Net.Minor), cmp.Compare(a.Name, b.Name))
	})
	return c, nil
}

// soFar rates a period as of now.
func (r *Room) soFar(ctx context.Context, tenant, period string, by func(*api.UsageEntry) Of) (*Account, Period, *rating, error) {
	a, err := r.Account(ctx, tenant)
	if err != nil {
		return nil, Period{}, nil, err
	}
	now := r.cfg.Now()
	if period == "" {
		period = now.In(a.Zone).Format("2006-01")
	}
	p, err := ParsePeriod(period, a.Zone)
	if err != nil {
		return nil, p, nil, err
	}
	rated, err := r.rateBy(ctx, a.UID, &a.Terms, p, now, nil, by)
	return a, p, rated, err
}

// Forecast is what a month is expected to cost at its end, net.
type Forecast struct {
	Tenant   string    `json:"tenant"`
	Period   string    `json:"period"`
	AsOf     time.Time `json:"asOf"`
	Currency string    `json:"currency"`
	Spent    Money     `json:"spent"`
	Expected Money     `json:"expected"`
	// Error is how far, on average, the same method was off the sum of the days to come, in
	// percent, when it was asked on earlier days. Unknown before there was one: Tried is 0.
	ErrorPercent float64   `json:"errorPercent"`
	Tried        int       `json:"tried" doc:"On how many earlier days the method was asked."`
	Days         int       `json:"days" doc:"Days to come."`
	Blockers     []Blocker `json:"blockers,omitempty"`
}

// Forecast expects of each day to come what days of its weekday cost, in the last four weeks.
func (r *Room) Forecast(ctx context.Context, tenant string) (*Forecast, error) {
	a, err := r.Account(ctx, tenant)
	if err != nil {
		return nil, err
	}
	digits, err := digitsOf(a.Terms.Currency)
	if err != nil {
		return nil, err
	}
	byDay := func(e *api.UsageEntry) Of { return Of{Day: e.From.In(a.Zone).Format(time.DateOnly)} }
	now := r.cfg.Now().In(a.Zone)
	daily, spent, whole := map[string]int64{}, int64(0), int64(0)
	var blockers []Blocker
	for back := 2; back >= 0; back-- {
		period := time.Date(now.Year(), now.Month()-time.Month(back), 1, 12, 0, 0, 0, time.UTC).Format("2006-01")
		_, _, rated, err := r.soFar(ctx, tenant, period, byDay)
		if err != nil {
			return nil, err
		}
		for _, l := range rated.lines {
			if back == 0 {
				spent += l.Net.Minor
			}
			for _, p := range l.Parts {
				if p.Day != "" && l.Kind == LineUsage {
					daily[p.Day] += p.Net.Minor
				}
			}
		}
		blockers = rated.blockers
	}
	f := &Forecast{Tenant: tenant, Period: now.Format("2006-01"), AsOf: now.UTC(), Currency: a.Terms.Currency, Spent: Money{spent, digits}, Blockers: blockers}
	history, left, partial := series(daily, now)
	f.Days = left
	for _, day := range predict(history, left) {
		whole += int64(math.Round(day))
	}
	// Of today, what is not spent yet is to come.
	f.Expected = Money{spent + max(whole-partial, 0), digits}
	f.ErrorPercent, f.Tried = backTest(history, left)
	return f, nil
}

// series is what each day cost, from the first that cost anything to yesterday; how many days
// of the month are to come, today included; and what today cost so far.
func series(daily map[string]int64, now time.Time) (history []float64, left int, today int64) {
	day := func(t time.Time) string { return t.Format(time.DateOnly) }
	at := time.Date(now.Year(), now.Month()-2, 1, 12, 0, 0, 0, time.UTC)
	end := time.Date(now.Year(), now.Month(), now.Day(), 12, 0, 0, 0, time.UTC)
	for ; at.Before(end); at = at.AddDate(0, 0, 1) {
		if c := daily[day(at)]; c != 0 || len(history) > 0 {
			history = append(history, float64(c))
		}
	}
	for ; at.Month() == end.Month(); at = at.AddDate(0, 0, 1) {
		left++
	}
	return history, left, daily[day(end)]
}

// predict expects of each of n days after a history the mean of the same weekday in the last
// four weeks, or of all days of the last week where there is less than that.
func predict(history []float64, n int) []float64 {
	out := make([]float64, n)
	week := history[max(0, len(history)-7):]
	for i := range out {
		var same []float64
		for at := len(history) + i%7 - 7; at >= 0 && len(same) < 4; at -= 7 {
			same = append(same, history[at])
		}
		if len(same) == 0 {
			same = week
		}
		for _, x := range same {
			out[i] += x / float64(len(same))
		}
	}
	return out
}

// backTest asks predict on each earlier day that had a week before it, for n days or as many
// as followed, and gives the mean of how far the sums were off, in percent.
func backTest(history []float64, n int) (percent float64, tried int) {
	for at := 7; at < len(history); at++ {
		horizon := min(n, len(history)-at)
		want, got := 0.0, 0.0
		for i, x := range predict(history[:at], horizon) {
			got, want = got+x, want+history[at+i]
		}
		if want > 0 && horizon > 0 {
			percent += 100 * math.Abs(got-want) / want
			tried++
		}
	}
	if tried > 0 {
		percent = math.Round(10*percent/float64(tried)) / 10
	}
	return percent, tried
}
