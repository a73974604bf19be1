package gpud

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/mutation"
	"tributary.dev/tributary/tests/wait"
)

func TestMain(m *testing.M) { wait.Leaks(m) }

// hand answers without a card.
type hand struct {
	events chan Event
	hold   chan struct{} // what a layout waits for, when there is one
}

func (h *hand) Hello() Hello { return Hello{Version: Version, Driver: "570"} }
func (h *hand) Cards() ([]Card, error) {
	return []Card{{Accelerator: api.Accelerator{ID: "GPU-1"}}}, nil
}
func (h *hand) SetCompute(string, string) error       { return nil }
func (h *hand) Sample() ([]Sample, error)             { return []Sample{{Card: "GPU-1", Percent: -1}}, nil }
func (h *hand) Destroy(string, int) error             { return nil }
func (h *hand) SetMIG(string, bool) (*api.MIG, error) { return &api.MIG{Enabled: true}, nil }
func (h *hand) Layout(card string) (*api.MIG, error) {
	if h.hold != nil {
		<-h.hold
	}
	if card != "GPU-1" {
		return nil, &api.Error{Code: api.NotFound, Message: "no such card", Remedy: "look"}
	}
	return &api.MIG{Enabled: true}, nil
}

func (h *hand) Create(_ string, profile int, at api.MIGPlacement) (*api.MIGInstance, error) {
	return &api.MIGInstance{ID: 1, Profile: profile, Placement: at}, nil
}

func (h *hand) Events(ctx context.Context, tell func(Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-h.events:
			tell(e)
		}
	}
}

// inside is a gpud in this process.
type inside struct {
	io.Reader
	io.Writer
	close func() error
}

func (p *inside) Close() error { return p.close() }

func start(h Handler) (Process, error) {
	askR, askW := io.Pipe()
	answerR, answerW := io.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = Serve(context.Background(), askR, answerW, h)
		answerW.Close()
		askR.Close()
	}()
	return &inside{answerR, askW, func() error {
		askW.Close()
		answerR.Close()
		<-served
		return nil
	}}, nil
}

func TestKeeper(t *testing.T) {
	h := &hand{events: make(chan Event)}
	told := make(chan Event, 1)
	up := make(chan Hello, 1)
	k := Keep(Config{Start: func() (Process, error) { return start(h) }, Events: func(e Event) { told <- e }, Again: func(h Hello) { up <- h }, Log: slog.New(slog.DiscardHandler), Pause: Pause})
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := k.Cards(ctx); api.CodeOf(err) != api.Unavailable {
		t.Errorf("before it runs: %v", err)
	}
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	defer running.Wait()
	defer cancel()
	if hello := wait.For(t, "gpud's greeting", up); hello.Driver != "570" {
		t.Errorf("%+v", hello)
	}
	if cards, err := k.Cards(ctx); err != nil || len(cards) != 1 || cards[0].Accelerator.ID != "GPU-1" {
		t.Errorf("%+v, %v", cards, err)
	}
	if m, err := k.Layout(ctx, "GPU-1"); err != nil || !m.Enabled {
		t.Errorf("%+v, %v", m, err)
	}
	var e *api.Error
	if _, err := k.Layout(ctx, "GPU-2"); !errors.As(err, &e) || e.Code != api.NotFound || e.Remedy != "look" {
		t.Errorf("%v", err)
	}
	if err := errors.Join(k.Create(ctx, "GPU-1", 0, api.MIGPlacement{Size: 1}), k.Destroy(ctx, "GPU-1", 1)); err != nil {
		t.Error(err)
	}
	if s, err := k.Sample(ctx); err != nil || s[0].Percent != -1 {
		t.Errorf("%+v, %v", s, err)
	}
	h.events <- Event{Card: "GPU-1", Kind: EventXid, Xid: 79, Instance: -1}
	if e := wait.For(t, "the event", told); e.Xid != 79 || e.Kind != EventXid {
		t.Errorf("%+v", e)
	}
}

// TestHangs: a driver that hangs holds up who asks for a while, not for ever; its gpud is ended
// and another started.
func TestHangs(t *testing.T) {
	h := &hand{events: make(chan Event), hold: make(chan struct{})}
	up := make(chan Hello, 10)
	k := Keep(Config{Start: func() (Process, error) { return start(h) }, Events: func(Event) {}, Again: func(h Hello) { up <- h }, Log: slog.New(slog.DiscardHandler),
		Answer: 50 * time.Millisecond, Pause: func(int) time.Duration { return 0 }})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	defer running.Wait()
	defer cancel()
	wait.For(t, "gpud's greeting", up)
	asked := make(chan error, 1)
	go func() {
		_, err := k.Layout(ctx, "GPU-1")
		asked <- err
	}()
	if err := wait.For(t, "an answer or the end of waiting", asked); api.CodeOf(err) != api.Unavailable || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("%v", err)
	}
	close(h.hold)
	wait.For(t, "another gpud", up)
}

// TestBadPeers: a gpud that greets and then goes wrong holds up who asks for a while, and another is
// started, which answers.
func TestBadPeers(t *testing.T) {
	layout := Reply{ID: 2, MIG: &api.MIG{Enabled: true}}
	frame := func(a any) []byte {
		var b bytes.Buffer
		if err := Write(&b, a); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, after := range map[string]func(ask io.Reader, answer io.Writer){
		"it reads no more": func(io.Reader, io.Writer) {},
		"half an answer": func(ask io.Reader, answer io.Writer) {
			_, _ = answer.Write(frame(layout)[:7])
			_, _ = io.Copy(io.Discard, ask)
		},
		"answers to others": func(ask io.Reader, answer io.Writer) {
			_ = Write(answer, Reply{ID: 77, MIG: layout.MIG})
			_, _ = io.Copy(io.Discard, ask)
		},
		"a frame of 4 GiB": func(ask io.Reader, answer io.Writer) {
			_, _ = answer.Write([]byte("\xff\xff\xff\xff and more"))
			_, _ = io.Copy(io.Discard, ask)
		},
		"a frame that is no map": func(ask io.Reader, answer io.Writer) {
			_, _ = answer.Write([]byte("\x00\x00\x00\x01\x01"))
			_, _ = io.Copy(io.Discard, ask)
		},
		"events without an end": func(ask io.Reader, answer io.Writer) {
			for Write(answer, Reply{Event: &Event{Card: "GPU-1", Kind: EventXid, Xid: 13}}) == nil {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var starts atomic.Int32
			up := make(chan Hello, 10)
			k := Keep(Config{Events: func(Event) {}, Again: func(h Hello) { up <- h }, Log: slog.New(slog.DiscardHandler), Answer: 100 * time.Millisecond, Pause: func(int) time.Duration { return 0 },
				Start: func() (Process, error) {
					if starts.Add(1) > 1 {
						return start(&hand{events: make(chan Event)})
					}
					return greets(after), nil
				}})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { k.Run(ctx) })
			defer running.Wait()
			defer cancel()
			wait.For(t, "its greeting", up)
			asked := make(chan error, 2)
			for range cap(asked) {
				running.Go(func() {
					_, err := k.Layout(ctx, "GPU-1")
					asked <- err
				})
			}
			for range cap(asked) {
				if err := wait.For(t, "an answer or the end of waiting", asked); err != nil && api.CodeOf(err) != api.Unavailable {
					t.Errorf("%v", err)
				}
			}
			wait.For(t, "another gpud", up)
			wait.Until(t, "the next one answers", func() bool { // a busy machine may be late for the limit
				_, err := k.Layout(ctx, "GPU-1")
				return err == nil
			})
		})
	}
}

// greets is a gpud that answers the greeting, and then does something else.
func greets(after func(ask io.Reader, answer io.Writer)) Process {
	askR, askW := io.Pipe()
	answerR, answerW := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var q Request
		if Read(askR, &q) == nil && Write(answerW, Reply{ID: q.ID, Hello: &Hello{Version: Version}}) == nil {
			after(askR, answerW)
		}
	}()
	return &inside{answerR, askW, func() error {
		askR.Close()
		answerW.Close()
		answerR.Close()
		askW.Close()
		<-done
		return nil
	}}
}

// TestStartedAgain: one that cannot start, one that says nonsense and one that ends while a
// question waits; then one that answers.
func TestStartedAgain(t *testing.T) {
	var starts atomic.Int32
	holding := &hand{events: make(chan Event), hold: make(chan struct{})}
	up := make(chan Hello, 1)
	third := make(chan Process, 1)
	config := Config{Events: func(Event) {}, Again: func(h Hello) { up <- h }, Log: slog.New(slog.DiscardHandler), Pause: func(int) time.Duration { return 0 }}
	config.Start = func() (Process, error) {
		switch starts.Add(1) {
		case 1:
			return nil, errors.New("no such program")
		case 2:
			r, w := io.Pipe()
			return &inside{strings.NewReader("an error message of a library\n"), w, func() error { return r.Close() }}, nil
		case 3:
			p, err := start(holding)
			third <- p
			return p, err
		}
		return start(&hand{events: make(chan Event)})
	}
	k := Keep(config)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	defer running.Wait()
	defer cancel()
	wait.For(t, "the third", up)
	answer := make(chan error, 1)
	running.Go(func() {
		_, err := k.Layout(ctx, "GPU-1")
		answer <- err
	})
	p := wait.For(t, "the third's process", third)
	// It ends as a process does that is killed: its output closes, whatever it was asked.
	p.(*inside).Reader.(*io.PipeReader).CloseWithError(io.EOF)
	if err := wait.For(t, "an answer to who waits", answer); api.CodeOf(err) != api.Unavailable {
		t.Errorf("%v", err)
	}
	close(holding.hold)
	wait.For(t, "the fourth", up)
	if _, err := k.Layout(ctx, "GPU-1"); err != nil {
		t.Error(err)
	}
}

// TestDeepest: a card with all that it can tell goes through.
func TestDeepest(t *testing.T) {
	at := []api.MIGPlacement{{Start: 1, Size: 2}}
	card := Card{Accelerator: api.Accelerator{MIG: &api.MIG{Enabled: true, Profiles: []api.MIGProfile{{Name: "1g.5gb", Placements: at}}, Instances: []api.MIGInstance{{Name: "1g.5gb", Placement: at[0]}}}}}
	var wire bytes.Buffer
	if err := Write(&wire, Reply{Cards: []Card{card}}); err != nil {
		t.Fatal(err)
	}
	var got Reply
	if err := Read(&wire, &got); err != nil || !reflect.DeepEqual(got.Cards, []Card{card}) {
		t.Errorf("%v, %+v", err, got)
	}
}

func TestRefusals(t *testing.T) {
	serve := func(questions ...Request) (replies []Reply, err error) {
		var in, out bytes.Buffer
		for _, q := range questions {
			if err := Write(&in, q); err != nil {
				t.Fatal(err)
			}
		}
		err = Serve(t.Context(), &in, &out, &hand{events: make(chan Event)})
		for {
			var a Reply
			if Read(&out, &a) != nil {
				return replies, err
			}
			replies = append(replies, a)
		}
	}
	if r, err := serve(Request{ID: 1, Op: OpHello, Version: Version + 1}); err == nil || r[0].Fault == nil || !strings.Contains(r[0].Fault.Message, "speaks version 1, and not 2") {
		t.Errorf("another version: %+v, %v", r, err)
	}
	if r, _ := serve(Request{ID: 1, Op: OpCards}); len(r) != 1 || r[0].Fault == nil {
		t.Errorf("without a greeting: %+v", r)
	}
	hello := Request{ID: 1, Op: OpHello, Version: Version}
	if r, _ := serve(hello, Request{Op: OpCards}); len(r) != 2 || r[1].Fault == nil {
		t.Errorf("without a number: %+v", r)
	}
	if r, _ := serve(hello, Request{ID: 2, Op: "reset"}); len(r) != 2 || r[1].Fault == nil || r[1].ID != 2 {
		t.Errorf("an unknown question: %+v", r)
	}
	for _, n := range []uint32{0, MaxFrame + 1} {
		frame := append(binary.BigEndian.AppendUint32(nil, n), make([]byte, MaxFrame+1)...)
		var q Request
		if err := Read(bytes.NewReader(frame), &q); !errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), "says that it has") {
			t.Errorf("a frame of %d bytes: %v", n, err)
		}
	}
	var q Request
	if err := Read(strings.NewReader("\x00\x00\x00\x09abc"), &q); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a frame: %v", err)
	}
	if err := Write(io.Discard, Reply{Cards: []Card{{Details: map[string]string{"x": strings.Repeat("x", MaxFrame)}}}}); err == nil {
		t.Error("a message that is too large is sent")
	}
}

// TestNonsense: what a gpud tells that cannot be is no card, no slice and nothing to bill.
func TestNonsense(t *testing.T) {
	card := func(a api.Accelerator) Card { return Card{Accelerator: a} }
	over := &api.MIG{Instances: []api.MIGInstance{{ID: 1, Placement: api.MIGPlacement{Size: 4}}, {ID: 2, Placement: api.MIGPlacement{Start: 3, Size: 4}}}}
	good := []Card{card(api.Accelerator{ID: "GPU-1", MIG: over}), card(api.Accelerator{ID: "0000:3b:00.0", MIG: &api.MIG{Enabled: true}})}
	if err := checkCards(good); err != nil || good[0].Accelerator.MIG != nil || len(good[0].Accelerator.Findings) != 1 || good[1].Accelerator.MIG == nil {
		t.Errorf("slices over each other: %v, %+v", err, good)
	}
	for _, list := range [][]Card{
		{card(api.Accelerator{})}, {card(api.Accelerator{ID: "../../etc"})}, {card(api.Accelerator{ID: "GPU-1/4+4"})},
		{card(api.Accelerator{ID: "GPU-1"}), card(api.Accelerator{ID: "GPU-1"})}, {card(api.Accelerator{ID: "GPU-1", MemoryMiB: -1})},
	} {
		if err := checkCards(list); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", list, err)
		}
	}
	if err := checkSamples([]Sample{{Percent: -1}, {Percent: 100, MemoryMiB: 81920}}); err != nil {
		t.Error(err)
	}
	for _, s := range []Sample{{Percent: -2}, {Percent: 101}, {MemoryMiB: -1}, {MemoryMiB: 1 << 40}} {
		if err := checkSamples([]Sample{{}, s}); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestRefusalsNeedTheirChecks(t *testing.T) {
	mutation.Prove(t, append(mutation.Marked(t, "^TestRefusals$", "serve.go", "protocol.go"), mutation.Marked(t, "^TestHangs$|^TestNonsense$", "keeper.go")...)...)
}

// FuzzRead: whatever comes, a reader of frames takes no more than it, does not panic, and
// what it took is the same when it is sent and taken again.
func FuzzRead(f *testing.F) {
	seed := func(message any) {
		var b bytes.Buffer
		if err := Write(&b, message); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	seed(Request{ID: 1, Op: OpHello, Version: Version})
	seed(Request{ID: 2, Op: OpCreate, Card: "GPU-1", Profile: 9, At: api.MIGPlacement{Start: 4, Size: 4}})
	seed(Reply{ID: 3, MIG: &api.MIG{Enabled: true, Instances: []api.MIGInstance{{UUID: "MIG-1", ID: 1}}}})
	seed(Reply{Event: &Event{Card: "GPU-1", Kind: EventXid, Xid: 79}})
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var q Request
		_ = Read(bytes.NewReader(raw), &q)
		var a, again Reply
		if Read(bytes.NewReader(raw), &a) != nil {
			return
		}
		var one, two bytes.Buffer
		if err := Write(&one, a); err != nil {
			return
		}
		if err := Read(bytes.NewReader(one.Bytes()), &again); err != nil {
			t.Fatal(err)
		}
		if err := Write(&two, again); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Fatalf("%x became %x", one.Bytes(), two.Bytes())
		}
		if a.MIG != nil {
			_, _ = layout(a, nil)
		}
	})
}
