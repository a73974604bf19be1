package intake

import (
	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link/record"
)

// maxRun bounds the records of a run, so that its sums are within what checkUsage lets in
// many times.
const maxRun = 512

// run is usage that the ledger enters as one: records of a batch that follow each other, end
// on one UTC day, and have no cut point between them. Each by itself is in the batch.
type run struct {
	api.Usage
	seq, last uint64
	records   int64
}

// runs sums up the usage among a batch's records. It is a pure function of them.
func runs(records []record.Record, rows []decoded) (out []run) {
	var open []int // the records of the run that may go on
	closeRun := func() {
		out = append(out, sumRun(records, rows, open)...)
		open = open[:0]
	}
	for i := range rows {
		u := rows[i].usage
		if u == nil {
			continue
		}
		if n := len(open); n > 0 {
			before := rows[open[n-1]].usage
			if before.Cut || before.To/dayMillis != u.To/dayMillis || n == maxRun {
				closeRun()
			}
		}
		open = append(open, i)
	}
	closeRun()
	return out
}

// sumRun makes one of a run's records, or leaves each by itself where the ledger cannot hold
// the sum.
func sumRun(records []record.Record, rows []decoded, of []int) (out []run) {
	if len(of) == 0 {
		return nil
	}
	us := make([]api.Usage, len(of))
	for k, i := range of {
		us[k] = *rows[i].usage
	}
	if len(of) > 1 {
		if sum, err := record.SumUsage(us...); err == nil && checkUsage(&sum) == nil {
			return []run{{Usage: sum, seq: records[of[0]].Seq, last: records[of[len(of)-1]].Last, records: int64(len(of))}}
		}
	}
	for k, i := range of {
		out = append(out, run{Usage: us[k], seq: records[i].Seq, last: records[i].Last, records: 1})
	}
	return out
}
