package fleet

import (
	"maps"
	"reflect"
	"slices"

	"tributary.dev/tributary/pkg/api"
)

// policiesOf joins what the policies that select a device say of its network cards, in the
// order of their names: of two that match a card the first holds.
func (w *World) policiesOf(labels map[string]string) (out []api.FunctionPolicy) {
	for _, name := range slices.Sorted(maps.Keys(w.Policies)) {
		if p := w.Policies[name]; p.Selector.Matches(labels) {
			out = append(out, p.Functions...)
		}
	}
	return out
}

func (t *tenant) setPolicy(name string, o *api.Object, d dirty) error {
	next := &api.NetworkPolicySpec{}
	if err := decode(o.Spec, next); err != nil {
		return err
	}
	old := t.Policies[name]
	if old != nil && reflect.DeepEqual(old, next) {
		return nil
	}
	t.Policies[name] = next
	d.where(t, func(e *entry) bool {
		return old != nil && old.Selector.Matches(e.Labels) || next.Selector.Matches(e.Labels)
	})
	return nil
}

func (t *tenant) unsetPolicy(name string, d dirty) {
	if old := t.Policies[name]; old != nil {
		delete(t.Policies, name)
		d.where(t, func(e *entry) bool { return old.Selector.Matches(e.Labels) })
	}
}
