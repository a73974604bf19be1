package cli

import (
	"fmt"
	"sort"

	"tributary.dev/tributary/pkg/api"
)

// leaf is one device of the drawn tree.
type leaf struct {
	id, parent, name, text string
}

// drawTree draws devices below the parents they are attached to, siblings by name.
// What hangs below a parent that is not in the list, or in a loop, is drawn at the end
// under "?": a device that moves may for a moment be the child of its own child.
func drawTree(root string, leaves []leaf) []string {
	children := map[string][]leaf{}
	known := map[string]bool{root: true}
	for _, l := range leaves {
		known[l.id] = true
	}
	for _, l := range leaves {
		parent := l.parent
		if !known[parent] || parent == l.id {
			parent = ""
		}
		children[parent] = append(children[parent], l)
	}
	for _, list := range children {
		sort.Slice(list, func(i, j int) bool {
			if list[i].name != list[j].name {
				return list[i].name < list[j].name
			}
			return list[i].id < list[j].id
		})
	}
	drawn := map[string]bool{}
	var lines []string
	var draw func(list []leaf, indent string)
	draw = func(list []leaf, indent string) {
		for i, l := range list {
			if drawn[l.id] {
				continue // a loop comes back to where it started
			}
			drawn[l.id] = true
			branch, deeper := "├─ ", "│  "
			if i == len(list)-1 {
				branch, deeper = "└─ ", "   "
			}
			lines = append(lines, indent+branch+l.text)
			draw(children[l.id], indent+deeper)
		}
	}
	lines = append(lines, root)
	draw(children[root], "")
	lost := children[""]
	if len(lost) > 0 || len(drawn) < len(leaves) {
		lines = append(lines, "?")
		draw(lost, "")
	}
	sort.Slice(leaves, func(i, j int) bool { return leaves[i].name < leaves[j].name })
	for _, l := range leaves { // those in loops hang below nobody that was drawn
		draw([]leaf{l}, "")
	}
	return lines
}

func (a *app) printTree(k *api.Kind, objects []*api.Object) error {
	switch k.Name {
	case api.KindDevice:
		a.printLines(drawTree("core", deviceLeaves(objects)))
	case api.KindTenant:
		a.printLines(drawTree(api.PlatformTenant, tenantLeaves(objects)))
	default:
		return &api.Error{Code: api.Invalid, Message: k.Plural + " form no tree", Remedy: "use --tree with devices or tenants"}
	}
	return nil
}

func (a *app) printLines(lines []string) {
	for _, line := range lines {
		fmt.Fprintln(a.Out, printable(line))
	}
}

// tenantLeaves are the tenants with what they are called; the one that is always there is
// among them.
func tenantLeaves(objects []*api.Object) []leaf {
	leaves, always := []leaf{}, true
	for _, o := range objects {
		var spec api.TenantSpec
		_ = readSpec(o, &spec)
		l := leaf{id: o.Metadata.Name, parent: spec.ParentOf(), name: o.Metadata.Name, text: o.Metadata.Name}
		if spec.DisplayName != "" {
			l.text += "  " + spec.DisplayName
		}
		always = always && l.name != api.DefaultTenant
		leaves = append(leaves, l)
	}
	if always {
		leaves = append(leaves, leaf{id: api.DefaultTenant, parent: api.PlatformTenant, name: api.DefaultTenant, text: api.DefaultTenant})
	}
	return leaves
}

func deviceLeaves(objects []*api.Object) (leaves []leaf) {
	for _, o := range objects {
		var spec api.DeviceSpec
		var st api.DeviceStatus
		_ = readSpec(o, &spec)
		_ = readStatus(o, &st)
		l := leaf{id: o.Metadata.Name, parent: st.Parent, name: o.Metadata.Name}
		if !st.ID.IsZero() {
			l.id = st.ID.String()
		}
		l.text = fmt.Sprintf("%s  %s", l.name, healthText(&spec, &st))
		if len(st.Apps) > 0 {
			l.text += "  apps " + appsText(st.Apps)
		}
		if st.Desired != st.Applied {
			l.text += "  gen " + generationText(&st)
		}
		leaves = append(leaves, l)
	}
	return leaves
}
