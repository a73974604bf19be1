//go:build cgo

package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/accel/gpud"
	"tributary.dev/tributary/pkg/edge/accel/pool"
	"tributary.dev/tributary/tests/wait"
)

// store keeps what the pool remembers.
type store struct {
	mu   sync.Mutex
	kept map[string][]byte
}

func (s *store) Load(_ string, fn func(key, value []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(s.kept)) {
		if err := fn([]byte(k), s.kept[k]); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) Put(_, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.kept, key); len(value) > 0 {
		s.kept[key] = value
	}
	return nil
}

// TestPool gives a slice of a card through a real gpud: cut by memory, prepared with its
// device files, still there when gpud was killed, and gone with the mode when it is given back.
func TestPool(t *testing.T) {
	root := t.TempDir()
	m, end := boot(t, filepath.Join(root, "cards"), nil)
	defer end()
	for name, text := range map[string]string{"dev/nvidia0": "", "dev/nvidiactl": "", "dev/nvidia-uvm": "", "dev/nvidia-caps/nvidia-cap20": "", "dev/nvidia-caps/nvidia-cap21": "",
		"proc/driver/nvidia/capabilities/gpu0/mig/gi1/access": "DeviceFileMinor: 20\n", "proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access": "DeviceFileMinor: 21\n"} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := pool.New(pool.Config{Driver: m.Keeper, NVIDIA: func() bool { return true }, Seen: func() []api.Accelerator { return nil }, Store: &store{kept: map[string][]byte{}}, Files: pool.Files{Libraries: root, System: root},
		Run: filepath.Join(root, "run"), Boot: "one", Changed: func() {}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetPolicies([]api.AcceleratorPolicy{{Model: "*A100*", Sharing: api.Sharing{Mode: api.SharingMIG}}}); err != nil {
		t.Fatal(err)
	}
	p.Look(t.Context())
	wait.For(t, "the cards", p.Ready())
	claim := api.Claim{Class: api.ClaimGPU, Driver: "nvidia", Count: 1, Options: map[string]string{"sharing": "mig", "memory": "9000"}}
	if made, err := p.Make(t.Context(), api.Need{Claims: []api.Claim{claim}}); err != nil || !made {
		t.Fatalf("%v, %v", made, err)
	}
	free := p.Claimables()
	if len(free) != 1 || claim.Fits(&free[0]) != "" || free[0].Fault != "" {
		t.Fatalf("cut are %+v", free)
	}
	edits, err := p.Prepare(t.Context(), free[0].ID, 1, claim)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(edits.Nodes); n != 5 || !strings.HasPrefix(edits.Env[1], "CUDA_VISIBLE_DEVICES=MIG-") {
		t.Errorf("a container gets %+v", edits)
	}
	if err := (<-m.started).Kill(); err != nil {
		t.Fatal(err)
	}
	wait.For(t, "another gpud", m.up)
	p.Look(t.Context())
	if now := p.Claimables(); len(now) != 1 || now[0].ID != free[0].ID || now[0].Fault != "" {
		t.Errorf("after gpud was killed: %+v", now)
	}
	if err := errors.Join(p.Restore(t.Context(), free[0].ID), p.SetPolicies(nil)); err != nil {
		t.Fatal(err)
	}
	p.Look(t.Context())
	card := m.card(t)
	if card.MIG.Enabled || len(card.MIG.Instances) > 0 {
		t.Errorf("given back, the card is %+v", card.MIG)
	}
}

// card is the one card as gpud tells it.
func (m *machine) card(t *testing.T) api.Accelerator {
	t.Helper()
	return again(t, "the card", func() ([]gpud.Card, error) { return m.Cards(context.WithoutCancel(t.Context())) })[0].Accelerator
}
