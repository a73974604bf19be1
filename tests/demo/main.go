// Command demo answers: what does Tributary do, seen with one's own eyes on one machine?
//
// It brings up cored, two relays and three field devices as real processes in network
// namespaces, plays the story and takes everything down. KEEP=1 leaves the tree up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

func main() {
	keep := flag.Bool("keep", os.Getenv("KEEP") == "1", "leave the tree up at the end")
	dir := flag.String("dir", "", "folder for the boxes' disks and logs (default: a new one in the system's temporary folder)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *dir, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, dir string, keep bool) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := lab.Root(); err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "tributary-demo-"); err != nil {
			return err
		}
	}
	l, err := lab.New(ctx, lab.Spec{Name: fmt.Sprintf("tb%d", os.Getpid()%100000), Bin: filepath.Join(root, "bin"), Dir: dir,
		Boxes: lab.Tree(), CoredArgs: story.CoredArgs})
	if err != nil {
		return err
	}
	s := &story.Story{Lab: l, Root: root, Out: os.Stdout, Fields: []string{"field-1", "field-2", "field-3"}, Wait: 90 * time.Second}
	defer func() {
		if err != nil {
			fmt.Fprintf(os.Stderr, "\nthe boxes' logs are in %s\n", dir)
		}
		if keep {
			waitForUser(ctx, s)
		}
		err = errors.Join(err, l.Close())
	}()
	if err := s.Play(ctx); err != nil {
		return err
	}
	s.Say("done: nothing was lost, and nothing was counted twice")
	return nil
}

// waitForUser leaves the tree up and says how to reach it, until a key or a signal.
func waitForUser(ctx context.Context, s *story.Story) {
	env, err := s.Lab.EdgectlEnv()
	if err != nil {
		return
	}
	fmt.Printf("\nThe tree is up. In another shell:\n\n  export %s\n  %s bin/edgectl get devices --tree\n\nCtrl-C takes it down.\n",
		strings.Join(env[:3], " "), strings.Join(s.Lab.CorePrefix(), " "))
	<-ctx.Done()
}
