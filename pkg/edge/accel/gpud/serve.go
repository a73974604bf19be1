package gpud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tributary.dev/tributary/pkg/api"
)

// Handler answers the questions; its methods are called one at a time, but for Events.
type Handler interface {
	Hello() Hello
	Cards() ([]Card, error)
	Layout(card string) (*api.MIG, error)
	Create(card string, profile int, at api.MIGPlacement) (*api.MIGInstance, error)
	Destroy(card string, instance int) error
	SetMIG(card string, on bool) (*api.MIG, error)
	Sample() ([]Sample, error)
	SetCompute(card, mode string) error
	// Events calls tell until ctx ends, or returns an error where cards tell none.
	Events(ctx context.Context, tell func(Event)) error
}

// Serve answers until r ends; that is how the agent ends gpud, and so does the agent's own
// end. It waits for Events to return.
func Serve(ctx context.Context, r io.Reader, w io.Writer, h Handler) error {
	s := &server{w: w, handler: h}
	ctx, cancel := context.WithCancel(ctx)
	var events sync.WaitGroup
	defer events.Wait()
	defer cancel()
	greeted := false
	for {
		var q Request
		if err := Read(r, &q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a := s.answer(q, greeted)
		a.ID = q.ID
		if err := s.send(a); err != nil {
			return err
		}
		if q.Op != OpHello {
			continue
		}
		if a.Fault != nil {
			return a.Fault.err()
		}
		if !greeted {
			greeted = true
			events.Go(func() { s.events(ctx) })
		}
	}
}

type server struct {
	mu      sync.Mutex
	w       io.Writer
	handler Handler
}

func (s *server) send(a Reply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Write(s.w, a)
}

func (s *server) events(ctx context.Context) {
	// Without events the samples still tell the counts of errors; Hello cannot know.
	_ = s.handler.Events(ctx, func(e Event) { _ = s.send(Reply{Event: &e}) })
}

func (s *server) answer(q Request, greeted bool) (a Reply) {
	var err error
	switch {
	case q.ID == 0: // check: number
		err = api.Errorf(api.Invalid, "a question needs a number")
	case q.Op == OpHello:
		a.Hello, err = s.hello(q.Version)
	case !greeted: // check: greeting
		err = api.Errorf(api.Invalid, "the first question is %s", OpHello)
	default:
		err = s.ask(q, &a)
	}
	if err != nil {
		a = Reply{Fault: faultOf(err)}
	}
	return a
}

func (s *server) hello(version int) (*Hello, error) {
	if version != Version { // check: version
		return nil, &api.Error{Code: api.Invalid, Message: fmt.Sprintf("gpud speaks version %d, and not %d", Version, version), Remedy: "install edged and gpud of one release"}
	}
	h := s.handler.Hello()
	return &h, nil
}

func (s *server) ask(q Request, a *Reply) (err error) {
	switch q.Op {
	case OpCards:
		a.Cards, err = s.handler.Cards()
	case OpLayout:
		a.MIG, err = s.handler.Layout(q.Card)
	case OpCreate:
		a.Instance, err = s.handler.Create(q.Card, q.Profile, q.At)
	case OpDestroy:
		err = s.handler.Destroy(q.Card, q.Instance)
	case OpSetMIG:
		a.MIG, err = s.handler.SetMIG(q.Card, q.On)
	case OpSample:
		a.Samples, err = s.handler.Sample()
	case OpCompute:
		err = s.handler.SetCompute(q.Card, q.Mode)
	default:
		err = api.Errorf(api.Invalid, "there is no question %q", q.Op)
	}
	return err
}

func faultOf(err error) *Fault {
	f := &Fault{Code: api.CodeOf(err), Message: err.Error()}
	var e *api.Error
	if errors.As(err, &e) {
		f.Message, f.Remedy = e.Message, e.Remedy
	}
	return f
}
