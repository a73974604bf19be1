package main

import "strconv"

// The spool is opened before the manifest is read, so its budget is kept here for the next
// start.
const spoolBudget = "spool-bytes"

// spoolBytes is the budget that the settings gave before this start; 0 is the default.
func (b *box) spoolBytes() int64 {
	raw, err := b.state.Blob(spoolBudget).Load()
	if err != nil {
		b.log.Warn("the spool's budget cannot be read; the default holds", "err", err)
		return 0
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < 0 {
		return 0 // nothing was ever saved
	}
	return n
}

// setSpoolBytes puts a budget in force, now and after the next start.
func (b *box) setSpoolBytes(n int64) {
	if err := b.spool.SetBudget(n); err != nil {
		b.log.Error("the spool's budget is not in force", "err", err)
	}
	if n == b.spoolBytes() {
		return
	}
	if err := b.state.Blob(spoolBudget).Save([]byte(strconv.FormatInt(n, 10))); err != nil {
		b.log.Error("the spool's budget cannot be kept for the next start", "err", err)
		return
	}
	b.log.Info("the spool has a new budget", "bytes", n)
}
