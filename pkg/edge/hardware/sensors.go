package hardware

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/natural"
)

// kinds of sensors by the prefix of their files (Documentation/hwmon/sysfs-interface).
var kinds = []struct{ prefix, kind string }{{"temp", "temperature"}, {"fan", "fan"}, {"in", "voltage"}, {"curr", "current"}, {"power", "power"}}

// sensors reads the chips of hwmon.
func (l *looker) sensors() {
	const root = "sys/class/hwmon"
	for _, name := range l.names(root, maxChips, "sensors") {
		dir := root + "/" + name + "/"
		chip := api.SensorChip{ID: l.word(dir + "name")}
		if chip.ID == "" {
			continue
		}
		if on := l.base(dir + "device"); on != "" && on != chip.ID { // hwmon's own numbers are given anew at each start
			if at := pciOf(l.follow(root + "/" + name)); at != "" && strings.HasPrefix(on, "nvme") {
				on = at // and so are NVMe's
			}
			chip.ID += "@" + on
		}
		files := l.names(root+"/"+name, 4096, "sensors")
		has := map[string]bool{}
		for _, f := range files {
			has[f] = true
		}
		for _, f := range files {
			id, ok := strings.CutSuffix(f, "_input")
			if !ok {
				if id, ok = strings.CutSuffix(f, "_average"); !ok || !strings.HasPrefix(id, "power") || has[id+"_input"] {
					continue
				}
			}
			if len(chip.Sensors) == maxSensors {
				break
			}
			if s, ok := l.sensor(dir, id, f, has); ok {
				chip.Sensors = append(chip.Sensors, s)
			}
		}
		if len(chip.Sensors) == 0 {
			continue
		}
		slices.SortStableFunc(chip.Sensors, func(a, b api.Sensor) int {
			return cmp.Or(cmp.Compare(order(a.Kind), order(b.Kind)), natural.Compare(a.Label, b.Label))
		})
		for n := 2; slices.ContainsFunc(l.out.Sensors, func(c api.SensorChip) bool { return c.ID == chip.ID }); n++ {
			chip.ID = strings.TrimSuffix(chip.ID, "#"+strconv.Itoa(n-1)) + "#" + strconv.Itoa(n)
		}
		l.out.Sensors = append(l.out.Sensors, chip)
	}
	slices.SortFunc(l.out.Sensors, func(a, b api.SensorChip) int { return cmp.Compare(a.ID, b.ID) })
}

func order(kind string) int {
	for i, k := range kinds {
		if k.kind == kind {
			return i
		}
	}
	return len(kinds)
}

// sensor reads one: its value stays here, its state is told.
func (l *looker) sensor(dir, id, file string, has map[string]bool) (s api.Sensor, ok bool) {
	for _, k := range kinds {
		if n, found := strings.CutPrefix(id, k.prefix); found && digits(n) {
			s.Kind = k.kind
		}
	}
	if s.Kind == "" {
		return s, false
	}
	s.Label = cmp.Or(l.label(dir, id, has), id)
	limit := func(suffix string) int64 {
		if !has[id+suffix] {
			return 0
		}
		n, _ := l.number(dir + id + suffix)
		if n <= 0 || s.Kind == "temperature" && n > 1_000_000 { // what chips without a limit say
			return 0
		}
		return n
	}
	s.High, s.Critical = limit("_max"), cmp.Or(limit("_crit"), limit("_emergency"))
	value, read := l.number(dir + file)
	if !read {
		return s, false // switched off, or the chip sleeps
	}
	s.Value = &value
	flag := func(suffix string) bool { return has[id+suffix] && l.text(dir+id+suffix) == "1" }
	low := limit("_min")
	switch {
	case flag("_fault"):
		s.State = "fault"
	case flag("_crit_alarm") || flag("_emergency_alarm") || s.Critical > 0 && value >= s.Critical:
		s.State = "critical"
	case s.Kind == "fan" && (flag("_min_alarm") || flag("_alarm") || low > 0 && value < low):
		s.State = "low"
	case s.Kind == "temperature" && (flag("_max_alarm") || s.High > 0 && value >= s.High), flag("_max_alarm"):
		s.State = "high"
	case flag("_min_alarm"):
		s.State = "low"
	case flag("_alarm") && s.Kind != "temperature": // of temperatures it often tells of a limit that nobody set
		s.State = "alarm"
	}
	return s, true
}

func (l *looker) label(dir, id string, has map[string]bool) string {
	if !has[id+"_label"] {
		return ""
	}
	return l.word(dir + id + "_label")
}
