package billing

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"codeberg.org/go-pdf/fpdf"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/sfnt"

	"tributary.dev/tributary/pkg/api"
)

// Fonts are those that documents are printed with: the one that is built in has Latin, Greek
// and Cyrillic; Other, a TrueType file, serves for what it lacks, such as Chinese.
type Fonts struct {
	Other []byte
}

// otherFonts are where Debian has fonts with Chinese as TrueType (fonts-droid-fallback).
var otherFonts = []string{"/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf", "/usr/share/fonts/truetype/droid/DroidSansFallback.ttf"}

// LoadFonts reads the other font from a file, or for "" from where Debian has one. Without one,
// characters that the built-in font lacks are printed by their numbers.
func LoadFonts(path string) (Fonts, error) {
	paths := otherFonts
	if path != "" {
		paths = []string{path}
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			if path != "" {
				return Fonts{}, &api.Error{Code: api.Invalid, Message: "the font of invoices cannot be read", Remedy: "name a TrueType file", Err: err}
			}
			continue
		}
		f, err := sfnt.Parse(b)
		if err == nil {
			_, err = f.GlyphIndex(nil, '中')
		}
		if err != nil || !bytes.HasPrefix(b, []byte{0, 1, 0, 0}) {
			return Fonts{}, &api.Error{Code: api.Invalid, Message: p + " is no TrueType font", Remedy: "name a .ttf file: collections (.ttc) and OpenType with CFF (.otf) cannot be embedded", Err: err}
		}
		return Fonts{Other: b}, nil
	}
	return Fonts{}, nil
}

// sheet is a PDF in the making. All lengths are millimetres.
type sheet struct {
	pdf         *fpdf.Fpdf
	main, other *sfnt.Font
	buf         sfnt.Buffer
	lacked      bool // a character was printed by its number
	size        float64
	bold        bool
}

const (
	left, right, top, bottom = 20.0, 190.0, 20.0, 277.0
	lineHeight               = 1.35 * 25.4 / 72 // of a point
)

// PDF prints the document. The same document and fonts give the same bytes.
func (d *Document) PDF(fonts Fonts) ([]byte, error) {
	day, err := time.Parse(time.DateOnly, d.Issued)
	if err != nil {
		day = d.AsOf
	}
	pdf := fpdf.New("P", "mm", "A4", "")
	pdf.SetCatalogSort(true)
	pdf.SetCreationDate(day.UTC())
	pdf.SetModificationDate(day.UTC())
	pdf.SetProducer("Tributary", false)
	pdf.SetTitle(titleOf(d)+" "+d.Number, true)
	pdf.SetAutoPageBreak(false, 0)
	pdf.SetMargins(0, 0, 0)
	pdf.SetCellMargin(0)
	pdf.AddUTF8FontFromBytes("main", "", goregular.TTF)
	pdf.AddUTF8FontFromBytes("main", "B", gobold.TTF)
	s := &sheet{pdf: pdf, size: 9}
	if s.main, err = sfnt.Parse(goregular.TTF); err != nil {
		return nil, err
	}
	if fonts.Other != nil {
		if s.other, err = sfnt.Parse(fonts.Other); err != nil {
			return nil, err
		}
		pdf.AddUTF8FontFromBytes("other", "", fonts.Other)
	}
	pdf.AliasNbPages("{n}")
	pdf.SetFooterFunc(func() {
		s.font(7.5, false)
		s.put(left, 284, right-left, "R", strconv.Itoa(pdf.PageNo())+" / {n}")
		s.put(left, 284, 120, "L", d.Number)
	})
	pdf.AddPage()
	s.head(d)
	s.lines(d)
	s.sums(d)
	s.notes(d)
	var b bytes.Buffer
	if err := pdf.Output(&b); err != nil {
		return nil, fmt.Errorf("print %s: %w", d.Number, err)
	}
	return b.Bytes(), nil
}

func titleOf(d *Document) string {
	return map[string]string{KindInvoice: "Invoice", KindCreditNote: "Credit note", KindDraft: "Draft of an invoice"}[d.Kind]
}

func (s *sheet) font(size float64, bold bool) { s.size, s.bold = size, bold }

// run is text that one font has.
type textRun struct {
	other bool
	text  string
}

// runs splits a text by the fonts that have its characters.
func (s *sheet) runs(text string) (out []textRun) {
	add := func(other bool, t string) {
		if n := len(out); n > 0 && out[n-1].other == other {
			out[n-1].text += t
			return
		}
		out = append(out, textRun{other, t})
	}
	for _, c := range text {
		switch {
		case c > 0xffff: // neither the library nor the fonts go beyond the first plane
			s.lacked = true
			add(false, fmt.Sprintf("[U+%04X]", c))
		case s.has(s.main, c):
			add(false, string(c))
		case s.other != nil && s.has(s.other, c):
			add(true, string(c))
		default:
			s.lacked = true
			add(false, fmt.Sprintf("[U+%04X]", c))
		}
	}
	return out
}

func (s *sheet) has(f *sfnt.Font, c rune) bool {
	n, err := f.GlyphIndex(&s.buf, c)
	return err == nil && n != 0
}

func (s *sheet) use(r textRun) {
	switch {
	case r.other:
		s.pdf.SetFont("other", "", s.size)
	case s.bold:
		s.pdf.SetFont("main", "B", s.size)
	default:
		s.pdf.SetFont("main", "", s.size)
	}
}

func (s *sheet) width(text string) (w float64) {
	for _, r := range s.runs(text) {
		s.use(r)
		w += s.pdf.GetStringWidth(r.text)
	}
	return w
}

// put prints one line of text within w.
func (s *sheet) put(x, y, w float64, align, text string) {
	if align == "R" {
		x += w - s.width(text)
	}
	for _, r := range s.runs(text) {
		s.use(r)
		s.pdf.Text(x, y+s.size*0.35, r.text)
		x += s.pdf.GetStringWidth(r.text)
	}
}

// wrapped breaks a text at spaces, or anywhere in a word that is too wide.
func (s *sheet) wrapped(text string, w float64) (out []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		next := strings.TrimSpace(line + " " + word)
		if s.width(next) <= w {
			line = next
			continue
		}
		if line != "" {
			out = append(out, line)
		}
		line = ""
		for _, c := range word {
			if line != "" && s.width(line+string(c)) > w {
				out, line = append(out, line), ""
			}
			line += string(c)
		}
	}
	return append(out, line)
}

func (s *sheet) step() float64 { return s.size * lineHeight }

// para prints a text over several lines, and gives where it ended.
func (s *sheet) para(x, y, w float64, text string) float64 {
	for _, line := range s.wrapped(text, w) {
		s.put(x, y, w, "L", line)
		y += s.step()
	}
	return y
}

func (s *sheet) party(x, y float64, p *Party) float64 {
	s.font(9, true)
	y = s.para(x, y, 80, p.LegalName)
	s.font(9, false)
	for _, line := range append(append([]string{}, p.Address...), p.Country) {
		if line != "" {
			y = s.para(x, y, 80, line)
		}
	}
	for _, of := range [][2]string{{"Tax number: ", p.TaxID}, {"", p.Contact}} {
		if of[1] != "" {
			y = s.para(x, y, 80, of[0]+of[1])
		}
	}
	return y
}

func (s *sheet) head(d *Document) {
	y := max(s.party(left, top, &d.Seller), top+15)
	s.font(18, true)
	s.put(110, top, right-110, "R", titleOf(d))
	s.font(9, false)
	at := top + 10
	facts := [][2]string{{"Number", d.Number}, {"Date", d.Issued}, {"Period", d.Period + " (" + d.Zone + ")"}, {"Currency", d.Currency}, {"Plan", d.Plan}, {"Tenant", d.Buyer.Tenant}}
	if d.Credits != "" {
		facts = append(facts, [2]string{"Credits", d.Credits})
	}
	for _, f := range facts {
		s.put(125, at, 25, "L", f[0])
		s.put(150, at, right-150, "R", f[1])
		at += s.step()
	}
	s.font(7.5, false)
	s.put(left, y+4, 80, "L", "To")
	y = max(s.party(left, y+8, &d.Buyer), at) + 8
	if d.Reason != "" {
		s.font(9, false)
		y = s.para(left, y, right-left, "Reason: "+d.Reason) + 4
	}
	s.pdf.SetY(y)
}

// columns of the table of lines: where each begins, how wide it is.
var columns = []struct {
	title string
	x, w  float64
	align string
}{{"", left, 74, "L"}, {"Quantity", 95, 33, "R"}, {"Net", 130, 20, "R"}, {"Tax %", 151, 11, "R"}, {"Tax", 163, 12, "R"}, {"Gross", 176, 14, "R"}}

func (s *sheet) titles() {
	s.font(8, true)
	y := s.pdf.GetY()
	for _, c := range columns {
		s.put(c.x, y, c.w, c.align, c.title)
	}
	y += s.step()
	s.pdf.Line(left, y, right, y)
	s.pdf.SetY(y + 1.5)
}

// room begins a new page where a height no longer fits.
func (s *sheet) room(h float64, titles bool) {
	if s.pdf.GetY()+h <= bottom {
		return
	}
	s.pdf.AddPage()
	s.pdf.SetY(top)
	if titles {
		s.titles()
	}
}

func (s *sheet) lines(d *Document) {
	s.titles()
	for i := range d.Lines {
		l := &d.Lines[i]
		s.font(8.5, false)
		text := s.wrapped(l.Text, columns[0].w)
		s.font(7, false)
		text2 := s.wrapped(detail(l), columns[0].w)
		s.room(float64(len(text))*8.5*lineHeight+float64(len(text2))*7*lineHeight+2, true)
		y := s.pdf.GetY()
		s.font(8.5, false)
		cells := []string{"", strings.TrimSpace(l.Quantity + " " + l.Unit), l.Net.String(), l.TaxPercent, l.Tax.String(), l.Gross.String()}
		for j, c := range columns[1:] {
			s.fit(c.x, y, c.w, cells[j+1])
		}
		s.font(8.5, false)
		for _, t := range text {
			s.put(left, y, columns[0].w, "L", t)
			y += s.step()
		}
		s.font(7, false)
		for _, t := range text2 {
			s.put(left, y, columns[0].w, "L", t)
			y += s.step()
		}
		s.pdf.SetY(y + 1.5)
	}
	s.pdf.Line(left, s.pdf.GetY(), right, s.pdf.GetY())
	s.pdf.SetY(s.pdf.GetY() + 3)
}

// fit prints to the right, smaller where it would not fit: a figure is never cut.
func (s *sheet) fit(x, y, w float64, text string) {
	s.font(8.5, false)
	if is := s.width(text); is > w {
		s.font(math.Floor(85*w/is)/10, false)
	}
	s.put(x, y, w, "R", text)
}

// detail is what stands below a line's text.
func detail(l *Line) string {
	parts := []string{l.From.Format("2006-01-02 15:04") + " to " + l.To.Format("2006-01-02 15:04") + " UTC"}
	for _, t := range l.Tiers {
		text := t.Quantity + " at " + t.Amount
		if t.Fixed != "" {
			text += " + " + t.Fixed
		}
		if t.UpTo != "" {
			text += " (up to " + t.UpTo + ")"
		}
		parts = append(parts, text)
	}
	if l.EnergyMillijoules != 0 {
		parts = append(parts, energyText(l.EnergyMillijoules)+", "+carbonText(l.CarbonMilligrams))
	}
	if l.Reason != "" {
		parts = append(parts, "decided: "+l.Reason)
	}
	return strings.Join(parts, "; ")
}

func energyText(mj int64) string { return fmt.Sprintf("%.3f kWh", float64(mj)/3.6e9) }
func carbonText(mg int64) string { return fmt.Sprintf("%.3f kg CO2e", float64(mg)/1e6) }

func (s *sheet) sums(d *Document) {
	s.room(30, false)
	row := func(name, amount string, bold bool) {
		s.font(9, bold)
		s.put(110, s.pdf.GetY(), 45, "R", name)
		s.put(155, s.pdf.GetY(), right-155, "R", amount)
		s.pdf.SetY(s.pdf.GetY() + s.step())
	}
	row("Net", d.Net.String()+" "+d.Currency, false)
	for _, t := range d.Taxes {
		row(t.Name+" "+t.Percent+" % of "+t.Net.String(), t.Tax.String()+" "+d.Currency, false)
	}
	row("Total", d.Gross.String()+" "+d.Currency, true)
	s.pdf.SetY(s.pdf.GetY() + 4)
}

func (s *sheet) notes(d *Document) {
	note := func(text string) {
		s.font(7.5, false)
		s.room(float64(len(s.wrapped(text, right-left)))*s.step(), false)
		s.pdf.SetY(s.para(left, s.pdf.GetY(), right-left, text) + 1)
	}
	if d.EnergyMillijoules+d.OtherEnergyMillijoules != 0 {
		note("Energy measured for what is charged: " + energyText(d.EnergyMillijoules) + ", " + carbonText(d.CarbonMilligrams) + ".")
	}
	for _, x := range d.Decisions {
		note("Decided by " + x.By + " on " + x.At.Format(time.DateOnly) + ": " + x.Subject + ": " + x.Action + " (" + x.Reason + ")")
	}
	note("Usage received up to " + d.AsOf.Format("2006-01-02 15:04:05") + " UTC: " + strconv.FormatInt(d.Usage.Entries, 10) + " entries. Terms " + d.Terms + ".")
	if s.lacked {
		note("Characters for which no font is at hand are printed by their Unicode numbers, as [U+4E2D]; the JSON form has them.")
	}
}
