package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Decide is one look at a rollout: how far it is now, and what to do. Called again with what it
// said and nothing new, it says nothing. The devices are not changed.
func Decide(spec *api.RolloutSpec, p Progress, devices []Device, budget Budget, now time.Time) (Progress, []Step) {
	d := &decision{spec: spec, p: p, now: now, steps: map[int]Do{}, devices: slices.Clone(devices), budget: take(budget)}
	for i := range d.devices {
		d.look(i)
	}
	for d.advance() {
	}
	switch {
	case d.p.Phase == api.RolloutRollingBack || d.p.Phase == api.RolloutRolledBack:
		d.restore()
	case d.gives():
		d.give()
	}
	d.advance() // what was left to wait for may be nothing
	return d.p, d.result(devices)
}

// decision is a look that is under way.
type decision struct {
	spec    *api.RolloutSpec
	p       Progress
	now     time.Time
	devices []Device
	steps   map[int]Do
	budget  Budget
}

func take(b Budget) Budget {
	sites := make(map[string]Site, len(b.Sites))
	for name, s := range b.Sites {
		sites[name] = s
	}
	b.Sites = sites
	return b
}

func (d *decision) result(before []Device) (out []Step) {
	for i := range d.devices {
		do := d.steps[i]
		if do == "" && d.devices[i] != before[i] {
			do = Note
		}
		if do != "" {
			out = append(out, Step{do, d.devices[i]})
		}
	}
	return out
}

// set brings a device into another state. Whatever it had of the budget it gives back, unless
// the state is one in which it is under way.
func (d *decision) set(i int, s State, why string) {
	x := &d.devices[i]
	x.State, x.Why, x.Since, x.WellAt = s, why, d.now, time.Time{}
	if s != Given && s != Restoring {
		d.free(i)
	}
}

// free gives a device's place in the budget back.
func (d *decision) free(i int) {
	x := &d.devices[i]
	x.Until = time.Time{}
	if !x.Slot {
		return
	}
	x.Slot = false
	d.budget.Left++
	site := d.budget.Sites[siteOf(x)]
	site.Taken--
	if x.Relay {
		site.Relays--
	}
	d.budget.Sites[siteOf(x)] = site
}

// look takes in what a device shows now.
func (d *decision) look(i int) {
	x := &d.devices[i]
	under := x.State == Given || x.State == Restoring
	if x.Changed != "" && (under || x.State == Waiting) {
		if d.back() && x.Touched {
			d.set(i, Kept, x.Changed)
		} else {
			d.set(i, Skipped, x.Changed)
		}
		return
	}
	if !under {
		if x.State == Healthy && x.Online && x.Health == Broken && !d.back() {
			d.set(i, Failed, "it was healthy, and failed later: "+x.Told)
		}
		return
	}
	late := d.now.Sub(x.Since) >= d.spec.Timeout()
	switch {
	case !x.Online:
		x.WellAt = time.Time{}
		if late { // it is no failure: it is brought up when it is back
			d.set(i, Waiting, "it is not heard of")
		}
	case x.Health == Broken:
		d.ended(i, false, cmp.Or(x.Told, "it says that it cannot"))
	case x.Health != Well:
		if x.WellAt = (time.Time{}); late {
			d.ended(i, false, fmt.Sprintf("it was not healthy within %s: %s", d.spec.Timeout(), cmp.Or(x.Told, "it told nothing")))
		}
	default:
		if x.WellAt.IsZero() {
			x.WellAt = d.now
		}
		if d.now.Sub(x.WellAt) >= d.spec.Soak() {
			d.ended(i, true, "")
		}
	}
}

// ended ends what a device is under way to.
func (d *decision) ended(i int, well bool, why string) {
	switch {
	case d.devices[i].State == Restoring && well:
		d.set(i, Restored, "")
	case d.devices[i].State == Restoring:
		d.set(i, Kept, "it has what it had before, and is not healthy: "+why)
	case well:
		d.set(i, Healthy, "")
	default:
		d.set(i, Failed, why)
	}
}

func (d *decision) back() bool {
	return d.p.Phase == api.RolloutRollingBack || d.p.Phase == api.RolloutRolledBack
}

// count is how the devices of some waves stand.
type count struct {
	all, waiting, there, given, healthy, failed, lost int // there: of those that wait; lost: touched and away
}

func (d *decision) count(which func(*Device) bool) (c count) {
	for i := range d.devices {
		x := &d.devices[i]
		if !which(x) || x.State == Skipped {
			continue
		}
		c.all++
		switch x.State {
		case Waiting:
			c.waiting++
			switch {
			case x.Online:
				c.there++
			case x.Touched:
				c.lost++
			}
		case Given:
			c.given++
		case Healthy:
			c.healthy++
		case Failed:
			c.failed++
		}
	}
	return c
}

// advance takes the rollout one phase or wave on; false when it stays where it is.
func (d *decision) advance() bool {
	before := d.p
	switch d.p.Phase {
	case api.RolloutRunning, api.RolloutWaiting:
		if d.failing() || d.expired() {
			break
		}
		if d.p.Phase == api.RolloutWaiting {
			d.leaveWait()
		} else {
			d.passWave()
		}
	case api.RolloutPaused:
		d.expired()
	case api.RolloutComplete:
		if all := d.count(everyone); all.waiting > 0 {
			if d.p.Message = fmt.Sprintf("%d devices are away and get it when they are back", all.waiting); d.tooMany(all) {
				d.p.Message = fmt.Sprintf("%d devices failed; those that were away keep what they have", all.failed)
			}
		} else {
			d.p.Message = ""
		}
	case api.RolloutRollingBack:
		left, under := d.unrestored()
		if left == 0 && under == 0 {
			d.p.Phase = api.RolloutRolledBack
		}
	}
	return d.p != before
}

func everyone(*Device) bool { return true }

// tooMany tells whether more devices failed than may.
func (d *decision) tooMany(c count) bool {
	return d.spec.MaxFailures == nil && c.failed > 0 || d.spec.MaxFailures != nil && c.failed > d.spec.MaxFailures.AtMost(c.all)
}

// failing pauses or turns a rollout around in which too much goes wrong.
func (d *decision) failing() bool {
	all := d.count(everyone)
	if !d.tooMany(all) {
		return false
	}
	d.fail(fmt.Sprintf("%d of %d devices failed", all.failed, all.all))
	return true
}

func (d *decision) fail(why string) {
	if d.spec.OnFailure == api.FailureRollback {
		d.p.Phase, d.p.Message, d.p.WaveSince = api.RolloutRollingBack, why, d.now
		return
	}
	d.stop(why)
}

func (d *decision) stop(why string) {
	d.p.Phase, d.p.Message = api.RolloutPaused, why
}

func (d *decision) expired() bool {
	if d.spec.Expires == nil || d.now.Before(*d.spec.Expires) {
		return false
	}
	if all := d.count(everyone); all.given == 0 { // those under way may end
		d.p.Phase, d.p.Message = api.RolloutExpired, "its time was over"
		return true
	}
	return false
}

// leaveWait begins the next wave when nothing holds it back any more.
func (d *decision) leaveWait() {
	last := WaveOf(d.spec, d.p.Wave-1)
	if last.Approve && d.p.Approved < d.p.Wave || d.now.Sub(d.p.WaveSince) < time.Duration(last.Pause) {
		return
	}
	d.p.Phase, d.p.WaveSince, d.p.Message = api.RolloutRunning, d.now, ""
}

// passWave ends the wave that is under way, if it can be.
func (d *decision) passWave() {
	if d.p.Wave >= Waves(d.spec) {
		d.p.Phase = api.RolloutComplete
		return
	}
	c := d.count(func(x *Device) bool { return x.Wave == d.p.Wave })
	if c.given > 0 || c.there > 0 {
		return
	}
	reached := c.healthy + c.failed + c.lost
	need := d.spec.Least().AtLeast(reached)
	if n := d.spec.Least().Devices; n > 0 {
		need = min(n, c.all)
	}
	need = max(need, min(1, c.all))
	if c.healthy < need && c.waiting > 0 && d.now.Sub(d.p.WaveSince) < d.spec.Timeout() {
		return // somebody may come yet
	}
	if c.healthy < need {
		why := fmt.Sprintf("wave %d: %d devices are healthy, %d are needed; %d failed, %d are away", d.p.Wave+1, c.healthy, need, c.failed, c.waiting)
		if c.failed > 0 {
			d.fail(why)
		} else {
			d.stop(why)
		}
		return
	}
	d.nextWave()
}

func (d *decision) nextWave() {
	last := WaveOf(d.spec, d.p.Wave)
	d.p.Wave++
	d.p.WaveSince, d.p.Message = d.now, ""
	switch {
	case d.p.Wave >= Waves(d.spec):
		d.p.Phase = api.RolloutComplete
	case last.Approve && d.p.Approved < d.p.Wave:
		d.p.Phase, d.p.Message = api.RolloutWaiting, fmt.Sprintf("wave %d is through; a person has to approve of the next", d.p.Wave)
	case last.Pause > 0:
		d.p.Phase, d.p.Message = api.RolloutWaiting, fmt.Sprintf("wave %d is through; the next begins at %s", d.p.Wave, d.now.Add(time.Duration(last.Pause)).UTC().Format(time.RFC3339))
	}
}

// gives tells whether devices may begin now.
func (d *decision) gives() bool {
	switch d.p.Phase {
	case api.RolloutRunning, api.RolloutWaiting, api.RolloutComplete:
		if d.p.Phase == api.RolloutComplete && d.tooMany(d.count(everyone)) {
			return false
		}
		return d.spec.Hours.Contain(d.now) && (d.spec.Expires == nil || d.now.Before(*d.spec.Expires))
	}
	return false
}

// give has devices begin that are there: of the wave under way, and of those before it that
// were away.
func (d *decision) give() {
	under := d.count(everyone).given
	for i := range d.devices {
		x := &d.devices[i]
		due := x.Wave < d.p.Wave || x.Wave == d.p.Wave && d.p.Phase == api.RolloutRunning
		if !due || x.State != Waiting || !x.Online || d.spec.AtOnce > 0 && under >= d.spec.AtOnce || !d.claim(i) {
			continue
		}
		under++
		d.begin(i, Given, Give)
		x.Touched = true
	}
}

func (d *decision) begin(i int, s State, do Do) {
	d.set(i, s, "")
	d.steps[i] = do
	x := &d.devices[i]
	x.Until = d.now.Add(d.spec.Timeout() / 2) // so that what begins last ends before its place is another's
	if d.spec.Expires != nil && do == Give && d.spec.Expires.Before(x.Until) {
		x.Until = *d.spec.Expires
	}
	x.Health, x.Told = Unknown, ""
}

// claim takes a place in the budget for a device; false when there is none.
func (d *decision) claim(i int) bool {
	x := &d.devices[i]
	if !d.spec.Disrupts() {
		return true
	}
	site, known := d.budget.Sites[siteOf(x)]
	if !known {
		site.Max = 1
	}
	most := site.Max
	if d.spec.PerSite > 0 {
		most = min(most, d.spec.PerSite)
	}
	full := false
	if d.budget.Left <= 0 { // check: budget of all
		full = true
	}
	if site.Taken >= most { // check: budget of a site
		full = true
	}
	if x.Relay && site.Relays > 0 { // check: one relay of a site
		full = true
	}
	if d.budget.Others[x.ID] { // check: one rollout of a device
		full = true
	}
	if full {
		return false
	}
	d.budget.Left--
	site.Taken++
	if x.Relay {
		site.Relays++
	}
	d.budget.Sites[siteOf(x)] = site
	x.Slot = true
	return true
}

// turned are the devices that a rollback has to bring back.
func turned(x *Device) bool {
	return x.Touched && x.State != Restoring && x.State != Restored && x.State != Kept
}

// restore brings devices back that were touched and are there.
func (d *decision) restore() {
	for i := range d.devices {
		x := &d.devices[i]
		switch {
		case !turned(x):
		case x.Changed != "":
			d.set(i, Kept, x.Changed)
		case x.Barred != "": // check: what must not come back
			d.set(i, Kept, x.Barred)
		case x.Online && (x.Slot || d.claim(i)):
			d.begin(i, Restoring, Restore)
		case x.State != Waiting && !x.Online: // it waits for its return without a place
			d.set(i, Waiting, "it is not heard of")
		}
	}
}

// unrestored counts devices that are there and are to be brought back, and those under way.
func (d *decision) unrestored() (left, under int) {
	for i := range d.devices {
		x := &d.devices[i]
		if turned(x) && (x.Online || x.Changed != "" || x.Barred != "") {
			left++
		} else if x.State == Restoring {
			under++
		}
	}
	return left, under
}
