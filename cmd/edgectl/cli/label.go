package cli

import (
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/voucher"
)

func (a *app) voucherLabelCommand() *cobra.Command {
	var svg, noCode bool
	c := &cobra.Command{Use: "label FILE|SERIAL [CODE]", Short: "Draw a box's label: its serial number, and its pairing code, as text and QR code", Args: cobra.RangeArgs(1, 2),
		Long: `Draw a box's label from the file of its birth (edgectl voucher birth), or from what its console shows. The QR code
holds text that edgectl device approve takes. Who reads the code on the label can let the box in: leave it out
(--no-code) where strangers see the box before you do and it has a voucher.`,
		RunE: func(_ *cobra.Command, args []string) error {
			l := label{Serial: args[0]}
			if len(args) == 2 {
				code, err := voucher.ReadCode(args[1])
				if err != nil {
					return err
				}
				l.Code = code
			} else if _, err := os.Stat(args[0]); err == nil {
				if l, err = labelOf(args[0]); err != nil {
					return err
				}
			}
			if noCode {
				l.Code = ""
			}
			if err := voucher.CheckSerial(l.Serial); err != nil {
				return &api.Error{Code: api.Invalid, Message: err.Error()}
			}
			return a.drawLabel(l, svg)
		}}
	c.Flags().BoolVar(&svg, "svg", false, "draw SVG for a printer, 60 mm by 30 mm")
	c.Flags().BoolVar(&noCode, "no-code", false, "leave the pairing code out")
	return c
}

// label is what a box's QR code says, as a URI of our own.
type label struct{ Serial, Code string }

const labelScheme = "tributary:"

func (l label) String() string {
	q := url.Values{"sn": {l.Serial}}
	if l.Code != "" {
		q.Set("code", l.Code)
	}
	return labelScheme + "?" + q.Encode()
}

// parseLabel reads what a QR code says; ok is false for other words.
func parseLabel(text string) (l label, ok bool) {
	rest, ok := strings.CutPrefix(text, labelScheme+"?")
	if !ok {
		return l, false
	}
	q, err := url.ParseQuery(rest)
	return label{q.Get("sn"), q.Get("code")}, err == nil
}

func labelOf(file string) (l label, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return l, err
	}
	key, certs, err := voucher.ParseBirth(text)
	if err != nil {
		return l, &api.Error{Code: api.Invalid, Message: file + " is no file of a birth", Err: err}
	}
	if l.Code, err = voucher.Code(key); err != nil {
		return l, err
	}
	l.Serial = certs[0].Subject.SerialNumber
	return l, nil
}

func (a *app) drawLabel(l label, svg bool) error {
	code, err := qr.Encode(l.String(), qr.M)
	if err != nil {
		return err
	}
	if !svg {
		drawText(a, code)
		fmt.Fprintf(a.Out, "serial number  %s\n", l.Serial)
		if l.Code != "" {
			fmt.Fprintf(a.Out, "pairing code   %s\n", l.Code)
		}
		return nil
	}
	var dots strings.Builder
	for y := range code.Size {
		for x := range code.Size {
			if code.Black(x, y) {
				fmt.Fprintf(&dots, "M%d %dh1v1h-1z", x, y)
			}
		}
	}
	scale := 24 / float64(code.Size)
	fmt.Fprintf(a.Out, `<svg xmlns="http://www.w3.org/2000/svg" width="60mm" height="30mm" viewBox="0 0 60 30">
<rect width="60" height="30" fill="#fff"/>
<path transform="translate(3 3) scale(%.5f)" shape-rendering="crispEdges" d="%s"/>
<g font-family="monospace" font-size="2.6"><text x="30" y="8">serial number</text><text x="30" y="12" font-weight="bold">%s</text>`, scale, dots.String(), xmlText(l.Serial))
	if l.Code != "" {
		fmt.Fprintf(a.Out, `<text x="30" y="19">pairing code</text><text x="30" y="23" font-weight="bold">%s</text>`, l.Code)
	}
	fmt.Fprintln(a.Out, "</g>\n</svg>")
	return nil
}

// drawText draws a QR code in half blocks, light on dark turned round so that it can be read
// from a dark terminal, with the quiet zone of four modules (ISO/IEC 18004).
func drawText(a *app, code *qr.Code) {
	const quiet = 4
	light := func(x, y int) bool { return !code.Black(x, y) }
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var line strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			switch {
			case light(x, y) && light(x, y+1):
				line.WriteString("█")
			case light(x, y):
				line.WriteString("▀")
			case light(x, y+1):
				line.WriteString("▄")
			default:
				line.WriteString(" ")
			}
		}
		fmt.Fprintln(a.Out, line.String())
	}
}

func xmlText(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
