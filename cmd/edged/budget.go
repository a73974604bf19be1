package main

import "strconv"

// The sizes of the spool's files follow from its budget when it is opened, so a new budget
// takes effect when edged starts next. It is kept here because the spool is opened before
// the manifest is read.
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

// keepSpoolBytes keeps the budget for the next start.
func (b *box) keepSpoolBytes(n int64) {
	if n == b.spoolBytes() {
		return
	}
	if err := b.state.Blob(spoolBudget).Save([]byte(strconv.FormatInt(n, 10))); err != nil {
		b.log.Error("the spool's budget cannot be kept", "err", err)
		return
	}
	b.log.Info("the spool has a new budget, in force when edged starts next", "bytes", n)
}
