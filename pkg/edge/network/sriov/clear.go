package sriov

// Clear has all virtual functions of a card taken away, as its policy says of changes, until it
// is called with away false: some cards change their switch's mode without functions alone. It
// tells whether none is left.
func (m *Manager) Clear(card string, away bool) bool {
	m.mu.Lock()
	was := m.clear[card]
	if away {
		m.clear[card] = true
	} else {
		delete(m.clear, card)
	}
	m.mu.Unlock()
	if was != away {
		m.Poke()
	}
	state := m.now()
	for i := range state.Cards {
		if c := &state.Cards[i]; c.PCI == card {
			return len(c.Functions) == 0
		}
	}
	return true
}

// Users names, by their numbers, who has virtual functions of a card in containers that run.
func (m *Manager) Users(card string) map[int][]string {
	held := map[string][]string{}
	if m.cfg.Holders != nil {
		held = m.cfg.Holders()
	}
	busy, state, out := m.busy(held), m.now(), map[int][]string{}
	for i := range state.Cards {
		if state.Cards[i].PCI != card {
			continue
		}
		for _, f := range state.Cards[i].Functions {
			if users := held[f.PCI]; busy[f.PCI] && len(users) > 0 {
				out[f.Index] = users
			} else if busy[f.PCI] {
				out[f.Index] = []string{names(nil)}
			}
		}
	}
	return out
}
