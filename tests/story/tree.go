package story

import (
	"context"

	"tributary.dev/tributary/tests/lab"
)

// Tree is what a play needs of a core with boxes under it.
type Tree interface {
	// StartCore starts cored; Join makes the boxes' join tokens; StartBoxes starts all.
	StartCore(ctx context.Context) error
	Join(ctx context.Context) error
	StartBoxes(ctx context.Context) error
	// Edgectl runs edgectl; GetJSON reads its `-o json`.
	Edgectl(ctx context.Context, stdin string, args ...string) (string, error)
	GetJSON(ctx context.Context, v any, args ...string) error
	// Names lists the boxes.
	Names() []string
	Box(name string) Box
}

// Box is what a play needs of a box.
type Box interface {
	// ParentName is the parent's name, or "core".
	ParentName() string
	// Start powers the box up; PowerCut takes its power away at once.
	Start(ctx context.Context) error
	PowerCut() error
	CutUplink(ctx context.Context) error
	HealUplink(ctx context.Context) error
	// LinkBytes is what the uplink carried, Ethernet headers included, since it was made.
	LinkBytes(ctx context.Context) (down, up uint64, err error)
	// AskApp gets the demo's app on the box.
	AskApp(ctx context.Context) (string, error)
	// Local asks edged's local API. Records are the box's own log.
	Local(ctx context.Context, path string) ([]byte, error)
	Records(ctx context.Context) ([]lab.Record, error)
}

// tree is the story's tree, whichever kind it is.
func (s *Story) tree() Tree {
	if s.Tree != nil {
		return s.Tree
	}
	return namespaces{s.Lab}
}

// recorded names a box's last record.
func (s *Story) recorded(ctx context.Context, box string) (last uint64, err error) {
	records, err := s.tree().Box(box).Records(ctx)
	for _, r := range records {
		last = max(last, r.Last, r.Seq)
	}
	return last, err
}

// namespaces is a lab.Lab as a Tree.
type namespaces struct{ *lab.Lab }

func (n namespaces) Names() (list []string) {
	for name := range n.Boxes {
		list = append(list, name)
	}
	return list
}

func (n namespaces) Box(name string) Box { return namespaced{n.Boxes[name]} }

type namespaced struct{ *lab.Box }

func (b namespaced) ParentName() string                   { return b.Parent }
func (b namespaced) CutUplink(ctx context.Context) error  { return b.Uplink.Cut(ctx) }
func (b namespaced) HealUplink(ctx context.Context) error { return b.Uplink.Heal(ctx) }

func (b namespaced) LinkBytes(ctx context.Context) (down, up uint64, err error) {
	return b.Uplink.Bytes(ctx)
}

func (b namespaced) AskApp(ctx context.Context) (string, error) {
	return b.Command(ctx, "curl", "-sf", "--max-time", "3", AppURL)
}
