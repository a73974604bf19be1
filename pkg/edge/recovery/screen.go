package recovery

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"charm.land/lipgloss/v2"
)

// Screen is the drawn face between two keys: a plain value, which Key changes and View
// shows.
type Screen struct {
	facts  Facts
	pages  []Page
	at     int // page
	scroll int
	form   *form
	said   []string // of the deed that runs or ran last
	title  string   // of that deed
	busy   bool
	failed string
}

// form is a deed being asked for.
type form struct {
	deed   Deed
	field  int // len(deed.Fields) is the confirmation
	values map[string]string
	input  string
	fault  string
}

// Wish is what a key asks of the world.
type Wish struct {
	Look, Leave, Plain bool
	// Do is a deed to be done with Fields.
	Do     *Deed
	Fields map[string]string
}

// NewScreen shows facts, the first page in front.
func NewScreen(f Facts) *Screen { return &Screen{facts: f, pages: Pages(f)} }

// Look takes new facts.
func (s *Screen) Look(f Facts) { s.facts, s.pages = f, Pages(f) }

// Say adds a line of the deed that runs.
func (s *Screen) Say(line string) {
	const most = 2000
	if len(s.said) >= most {
		s.said = slices.Delete(s.said, 0, most/10)
	}
	s.said = append(s.said, clean(line))
}

// Ended tells how the deed went.
func (s *Screen) Ended(err error) {
	s.busy = false
	if err != nil {
		s.failed = clean(err.Error())
	}
}

// Key takes a key by its name: a character, "up", "enter", "esc", "pgdown" and so on.
func (s *Screen) Key(key string) Wish {
	if s.form != nil {
		return s.formKey(key)
	}
	switch key {
	case "up", "k", "left", "shift+tab":
		if s.shows() {
			s.scroll = max(0, s.scroll-1)
		} else {
			s.turn(-1)
		}
	case "down", "j", "right", "tab":
		if s.shows() {
			s.scroll++
		} else {
			s.turn(1)
		}
	case "pgdown", "space", " ":
		s.scroll += 8
	case "pgup", "b":
		s.scroll = max(0, s.scroll-8)
	case "r":
		return Wish{Look: true}
	case "p":
		return Wish{Plain: true}
	case "q", "ctrl+c", "ctrl+d", "esc", "enter":
		if s.shows() {
			if s.busy {
				return Wish{}
			}
			s.said, s.title, s.failed, s.scroll = nil, "", "", 0
			return Wish{Look: true}
		}
		return Wish{Leave: key == "q" || strings.HasPrefix(key, "ctrl")}
	default:
		if n, err := strconv.Atoi(key); err == nil && !s.shows() && n >= 1 && n <= len(s.page().Deeds) {
			return s.begin(s.page().Deeds[n-1])
		}
	}
	return Wish{}
}

// shows: the output of a deed is in front of the page.
func (s *Screen) shows() bool { return s.title != "" }

func (s *Screen) page() Page { return s.pages[s.at] }

func (s *Screen) turn(by int) {
	s.at, s.scroll = (s.at+by+len(s.pages))%len(s.pages), 0
}

func (s *Screen) begin(d Deed) Wish {
	s.form = &form{deed: d, values: map[string]string{}}
	s.form.load()
	return s.ready()
}

func (f *form) load() {
	if f.field < len(f.deed.Fields) {
		f.input = f.deed.Fields[f.field].Default
	} else {
		f.input = ""
	}
}

// ready lets the deed go once nothing is left to ask.
func (s *Screen) ready() Wish {
	f := s.form
	if f.field < len(f.deed.Fields) || f.field == len(f.deed.Fields) && f.deed.Confirm != "" {
		return Wish{}
	}
	s.form, s.busy, s.title, s.said, s.failed, s.scroll = nil, true, f.deed.Title, nil, "", 0
	return Wish{Do: &f.deed, Fields: f.values}
}

func (s *Screen) formKey(key string) Wish {
	f := s.form
	switch key {
	case "esc", "ctrl+c":
		s.form = nil
	case "backspace", "ctrl+h":
		if r := []rune(f.input); len(r) > 0 {
			f.input = string(r[:len(r)-1])
		}
	case "ctrl+u":
		f.input = ""
	case "enter":
		return s.enter()
	case "space":
		f.input += " "
	default:
		if r := []rune(key); len(r) == 1 && r[0] >= ' ' && r[0] < 127 && len(f.input) < maxLine {
			f.input += key
		}
	}
	return Wish{}
}

func (s *Screen) enter() Wish {
	f := s.form
	if f.field < len(f.deed.Fields) {
		field := f.deed.Fields[f.field]
		if len(field.Choices) > 0 && !slices.Contains(field.Choices, f.input) {
			f.fault = "one of " + strings.Join(field.Choices, ", ")
			return Wish{}
		}
		f.values[field.Name] = strings.TrimSpace(f.input)
	} else if f.input != f.deed.Confirm {
		s.form = nil
		return Wish{}
	}
	f.field, f.fault = f.field+1, ""
	f.load()
	return s.ready()
}

// The styles are few: a terminal of eight colours shows them all.
var (
	styleBar  = lipgloss.NewStyle().Reverse(true)
	styleHere = lipgloss.NewStyle().Bold(true).Reverse(true)
	styleHead = lipgloss.NewStyle().Bold(true)
	styleDim  = lipgloss.NewStyle().Faint(true)
	styleCode = lipgloss.NewStyle().Foreground(lipgloss.BrightWhite).Background(lipgloss.Black)
	styleMark = map[Mark]lipgloss.Style{
		Good:      lipgloss.NewStyle().Foreground(lipgloss.Green),
		Attention: lipgloss.NewStyle().Foreground(lipgloss.Yellow),
		Bad:       lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true),
		Heading:   lipgloss.NewStyle().Bold(true),
	}
)

const menuWidth = 12

// View draws the screen, height lines of at most width cells.
func (s *Screen) View(width, height int) string {
	width, height = max(width, 20), max(height, 6)
	b := Banner(s.facts)
	menu := 0
	if width >= 60 {
		menu = menuWidth
	}
	body := s.body(width-menu, height-2)
	lines := []string{styleBar.Render(spread(" Tributary  "+b.Label, b.Text+" ", width))}
	for i := range height - 2 {
		left := ""
		if menu > 0 {
			left = s.menuLine(i, menu)
		}
		right := ""
		if i < len(body) {
			right = body[i]
		}
		lines = append(lines, left+right)
	}
	return strings.Join(append(lines, styleBar.Render(spread(s.help(width), "", width))), "\n")
}

func (s *Screen) menuLine(i, width int) string {
	i--
	if i < 0 || i >= len(s.pages) {
		return strings.Repeat(" ", width)
	}
	text := fmt.Sprintf(" %-*s", width-3, s.pages[i].Name)
	if i == s.at {
		return styleHere.Render(text) + "  "
	}
	return text + "  "
}

func (s *Screen) help(width int) string {
	long, short := " up/down page  space more  1-9 do  r look again  p plain  q leave", " up/dn page  spc more  1-9 do  q leave"
	switch {
	case s.form != nil:
		long, short = " enter goes on  esc stops  ctrl-u clears", " enter goes on  esc stops"
	case s.busy:
		long, short = " please wait", " please wait"
	case s.shows():
		long, short = " up/down moves  enter goes back", " up/dn moves  enter goes back"
	}
	if len(long) > width {
		return short
	}
	return long
}

// body is the right side: a form, a deed's output, or a page.
func (s *Screen) body(width, height int) []string {
	switch {
	case s.form != nil:
		return s.formBody(width, height)
	case s.shows():
		return s.saidBody(width, height)
	}
	p := s.page()
	title := p.Title
	if width < 60-menuWidth {
		title = fmt.Sprintf("%d/%d %s", s.at+1, len(s.pages), p.Title)
	}
	out := []string{styleHead.Render(fit(title, width)), ""}
	room := height - len(out) - len(p.Deeds)
	if len(p.Deeds) > 0 {
		room--
	}
	rows := layout(p.Lines, width-1, halfBlocks)
	out = append(out, s.window(rows, max(room, 2))...)
	for len(out) < height-len(p.Deeds) {
		out = append(out, "")
	}
	for i, d := range p.Deeds {
		out = append(out, fit(fmt.Sprintf("[%d] %s", i+1, d.Title), width))
	}
	return out
}

// window shows room rows from the scroll position on, and says what is beyond.
func (s *Screen) window(rows []row, room int) (out []string) {
	if len(rows) <= room {
		s.scroll = 0
	} else {
		s.scroll = min(s.scroll, len(rows)-room+1)
	}
	shown, rest := rows[s.scroll:], 0
	if len(shown) > room {
		rest = len(shown) - room + 1
		shown = shown[:room-1]
	}
	for _, r := range shown {
		text := []rune(r.text)
		out = append(out, styleCode.Render(string(text[:r.lead]))+styleMark[r.mark].Render(string(text[r.lead:])))
	}
	if rest > 0 {
		out = append(out, styleDim.Render(fmt.Sprintf("... %d more", rest)))
	}
	return out
}

func (s *Screen) formBody(width, height int) []string {
	f := s.form
	out := []string{styleHead.Render(fit(f.deed.Title, width)), ""}
	for i, field := range f.deed.Fields {
		if i < f.field {
			out = append(out, fit(field.Name+": "+masked(field, f.values[field.Name]), width))
		}
	}
	question, input := "Type \""+f.deed.Confirm+"\" to go on:", f.input
	if f.field < len(f.deed.Fields) {
		question, input = f.deed.Fields[f.field].Question+":", masked(f.deed.Fields[f.field], f.input)
	} else {
		for _, t := range wrap(f.deed.Warning, width-1) {
			out = append(out, styleMark[Attention].Render(t))
		}
	}
	out = append(out, wrap(question, width-1)...)
	out = append(out, fit("> "+tail(input, width-4)+"_", width))
	if f.fault != "" {
		out = append(out, styleMark[Bad].Render(fit(f.fault, width)))
	}
	return out[max(0, len(out)-height):]
}

func (s *Screen) saidBody(width, height int) []string {
	out := []string{styleHead.Render(fit(s.title, width)), ""}
	var rows []row
	for _, line := range s.said {
		for _, t := range wrap(line, width-1) {
			rows = append(rows, row{text: t})
		}
	}
	switch {
	case s.busy:
		rows = append(rows, row{text: "...", mark: Attention})
		s.scroll = max(0, len(rows)-(height-2))
	case s.failed != "":
		for _, t := range wrap("FAILED: "+s.failed, width-1) {
			rows = append(rows, row{text: t, mark: Bad})
		}
	default:
		rows = append(rows, row{text: "Done.", mark: Good})
	}
	return append(out, s.window(rows, height-2)...)
}

func tail(text string, width int) string {
	r := []rune(text)
	return string(r[max(0, len(r)-width):])
}

func fit(text string, width int) string {
	r := []rune(text)
	return string(r[:min(len(r), width)])
}

// spread puts one text at either end of a line.
func spread(left, right string, width int) string {
	l, r := []rune(left), []rune(right)
	if room := width - len(r) - 1; len(l) > room {
		l = l[:max(room, 0)]
	}
	gap := max(0, width-len(l)-len(r))
	return fit(string(l)+strings.Repeat(" ", gap)+string(r), width)
}
