package recovery

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
)

// DrawConfig is a terminal.
type DrawConfig struct {
	In  io.Reader
	Out io.Writer
	// Width and Height are its size; Resize brings others.
	Width, Height int
	Resize        <-chan [2]int
	// Colours is false for a terminal that shows none.
	Colours bool
}

// What is drawn is no larger than this, whatever a terminal says of itself: a screen takes memory,
// and who is far away names its size.
const (
	MaxWidth  = 300
	MaxHeight = 100
)

// ErrPlain is returned by RunScreen when the person wants the plain menus.
var ErrPlain = errors.New("the plain menus are wanted")

// RunScreen draws the console until the person leaves (nil), wants the other face
// (ErrPlain), was let into a shell (ErrShell), or ctx ends. The terminal has to hand every key on, as in raw mode.
func RunScreen(ctx context.Context, cfg DrawConfig, box Box) error {
	if cfg.Width <= 0 || cfg.Height <= 0 {
		cfg.Width, cfg.Height = 80, 24
	}
	cfg.Width, cfg.Height = min(cfg.Width, MaxWidth), min(cfg.Height, MaxHeight)
	profile := colorprofile.Ascii
	if cfg.Colours {
		profile = colorprofile.ANSI
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &drawn{ctx: ctx, box: box, screen: NewScreen(box.Facts(ctx)), width: cfg.Width, height: cfg.Height}
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(cfg.In), tea.WithOutput(rawLines{cfg.Out}), tea.WithoutSignalHandler(),
		tea.WithWindowSize(cfg.Width, cfg.Height), tea.WithColorProfile(profile), tea.WithFPS(10), tea.WithEnvironment([]string{"TERM=linux"}))
	m.send = p.Send
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-cfg.Resize:
				if !ok {
					return
				}
				p.Send(tea.WindowSizeMsg{Width: min(size[0], MaxWidth), Height: min(size[1], MaxHeight)})
			}
		}
	}()
	_, err := p.Run()
	switch {
	case m.plain:
		return ErrPlain
	case m.shell:
		return ErrShell
	case errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil:
		return ctx.Err()
	}
	return err
}

// rawLines is a terminal in raw mode, on which a newline leads straight down. What is drawn
// is drawn for one where it leads to the beginning of the next line: bubbletea takes every
// input that is no terminal to it for that.
type rawLines struct{ to io.Writer }

// Write implements io.Writer.
func (w rawLines) Write(b []byte) (int, error) {
	if _, err := w.to.Write(bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// drawn is bubbletea's model around a Screen.
type drawn struct {
	ctx           context.Context
	box           Box
	screen        *Screen
	width, height int
	plain, shell  bool
	send          func(tea.Msg)
}

type (
	looked Facts
	said   string
	ended  struct{ err error }
	again  struct{}
)

// every is how often the drawn face looks at the box by itself.
const every = 5 * time.Second

func later() tea.Cmd { return tea.Tick(every, func(time.Time) tea.Msg { return again{} }) }

func (m *drawn) look() tea.Msg {
	ctx, cancel := context.WithTimeout(m.ctx, lookTime)
	defer cancel()
	return looked(m.box.Facts(ctx))
}

func (m *drawn) Init() tea.Cmd { return later() }

func (m *drawn) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case looked:
		m.screen.Look(Facts(msg))
	case again:
		return m, tea.Batch(m.look, later())
	case said:
		m.screen.Say(string(msg))
	case ended:
		if errors.Is(msg.err, ErrShell) {
			m.shell = true
			return m, tea.Quit
		}
		m.screen.Ended(msg.err)
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

func (m *drawn) key(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	if text := k.Key().Text; text != "" {
		name = text
	}
	switch w := m.screen.Key(name); {
	case w.Plain:
		m.plain = true
		return tea.Quit
	case w.Leave:
		return tea.Quit
	case w.Look:
		return m.look
	case w.Do != nil:
		return func() tea.Msg {
			ctx, cancel := context.WithTimeout(m.ctx, deedTime)
			defer cancel()
			return ended{m.box.Do(ctx, w.Do.ID, w.Fields, func(line string) { m.send(said(line)) })}
		}
	}
	return nil
}

func (m *drawn) View() tea.View {
	v := tea.NewView(m.screen.View(m.width, m.height))
	v.AltScreen = true
	return v
}
