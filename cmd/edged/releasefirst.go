package main

import (
	"tributary.dev/tributary/pkg/edge/onboard"
	"tributary.dev/tributary/pkg/edge/update"
)

// An owner may have a box run a release before it takes its apps (the boot image of RFC
// 8572's onboarding information). The box enrols, updates in the one way that there is, and
// starts its apps in the release on trial. That is judged by system, agent and parent: no app ran
// before.

// releaseFirst is that release; nil once the box has run it, or where there is none. The
// manifest's own word, which is newer, goes first.
func (b *box) releaseFirst() *update.Want {
	r := b.first.Load()
	if r == nil {
		return nil
	}
	return &update.Want{Repo: r.Repo, Digest: r.Digest}
}

// holdApps tells why no app is taken yet. It ends, and is forgotten, once the release runs for good
// that the box was to run first, or that its manifest names since; one that went back holds them on.
func (b *box) holdApps() string {
	first := b.first.Load()
	if first == nil || b.updater == nil {
		return ""
	}
	want, _ := b.wantedRelease()
	why, over := waitsFor(first, want, b.updater.State(), b.updater.Running())
	if over && b.first.CompareAndSwap(first, nil) {
		if err := b.forgetFirst(); err != nil {
			b.log.Warn("that the first release runs is not written down", "err", err)
		}
	}
	return why
}

// waitsFor is the decision of holdApps.
func waitsFor(first *onboard.Release, want *update.Want, s update.State, running update.Slot) (why string, over bool) {
	runs := s.Slots[running].Digest
	if runs == first.Digest || want != nil && runs == want.Digest {
		return "", s.Good == running
	}
	return "its owner has the box run another release first: " + first.Repo + "@" + first.Digest, false
}

// forgetFirst takes the release out of what is kept of the owner.
func (b *box) forgetFirst() error {
	owner, err := onboard.LoadOwner(b.o.data)
	if err != nil || owner == nil {
		return err
	}
	owner.Release = nil
	return owner.Save(b.o.data)
}
