package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"tributary.dev/tributary/tests/machines"
	"tributary.dev/tributary/tests/story"
	"tributary.dev/tributary/tests/vm"
)

// onMachines plays on boxes that are machines: each boots the image, has nothing but what the
// image gives it and the certificate of its birth, and finds its owner by itself: the relay at
// the core's bootstrap server, the field boxes by the relay's answer on their network.
func onMachines(ctx context.Context, dir string, keep bool) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	ours := dir == ""
	if ours {
		if dir, err = os.MkdirTemp("", "tributary-demo-"); err != nil {
			return err
		}
	}
	s := &story.Story{Root: root, Out: os.Stdout, Wait: 4 * time.Minute, App: "tests/demo/machines", Cut: "relay-1", Fields: []string{"field-1", "field-2"},
		Arches: []string{"amd64", "arm64"}, Bear: machines.Bear, Joined: "by themselves: a voucher of their manufacturer says whose they are"}
	accel, err := vm.Probe(ctx, root)
	if err != nil {
		return err
	}
	if accel == "" {
		s.Say("no guest boots under KVM here: the machines are emulated, and take their time")
	}
	tree, err := machines.New(machines.Spec{Bin: cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin")), Images: filepath.Join(root, "build"), Dir: dir, Boxes: machines.Small(),
		Keys: filepath.Join(root, ".cache", "keys"), CoredArgs: story.CoredArgs, Accel: accel, Say: s.Say})
	if err != nil {
		return err
	}
	s.Tree = tree
	defer func() {
		if keep && ctx.Err() == nil {
			env, envErr := tree.EdgectlEnv()
			err = errors.Join(err, envErr, waitForUser(ctx, filepath.Join(dir, "shell"), shellScript(root, tree.Bin, tree.CoreDir(), env, []string{"env"})))
		}
		if err = errors.Join(err, tree.Close()); err == nil && ours && !keep {
			err = os.RemoveAll(dir)
			return
		}
		fmt.Fprintf(os.Stderr, "\nThe machines' disks and logs are left in %s\n", dir)
	}()
	if err := s.Play(ctx); err != nil {
		return err
	}
	s.Say("done: nothing was lost, and nothing was counted twice")
	return nil
}
