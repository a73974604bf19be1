package link

import (
	"fmt"
	"slices"
	"strings"
)

// Describe names the messages of a frame and their sizes, for people who look at a
// link. Numbers stand for types: see the tables in frame.go, by direction.
func Describe(frame []byte) string {
	msgs, err := splitFrame(frame)
	if err != nil {
		return err.Error()
	}
	parts := make([]string, 0, len(msgs))
	for _, m := range msgs {
		parts = append(parts, fmt.Sprintf("%d:%dB", m.typ, len(m.raw)))
	}
	return fmt.Sprintf("%dB %s", len(frame), strings.Join(parts, " "))
}

// Alter gives each message of a frame to fn and packs what it returns into a frame. It is
// for tests that play a hostile relay.
func Alter(frame []byte, fn func(typ uint64, message []byte) []byte) ([]byte, error) {
	msgs, err := splitFrame(frame)
	if err != nil {
		return nil, err
	}
	var body []byte
	for _, m := range msgs {
		body = append(body, fn(m.typ, m.raw)...)
	}
	return packFrame(body), nil
}

// Dump tells in words what a party knows of each device.
func (n *node) Dump() (out []string) {
	for id, r := range n.rows {
		via, _ := n.via(id)
		line := fmt.Sprintf("%s %d->%s via %s state %v ahead %v manifest %v claim %v lost %d/%d", id, r.att.Counter, r.att.Parent, via,
			r.state, r.ahead, r.man.version, r.claim, r.lost, r.lostFeed)
		for name, on := range map[string]bool{"known": r.known, "absent": r.absent, "orphan": r.orphan} {
			if on {
				line += " " + name
			}
		}
		for _, e := range r.since(0) {
			line += fmt.Sprintf(" %s=%d", e.Key, e.Seq)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}
