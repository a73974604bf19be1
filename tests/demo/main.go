// Command demo answers: what does Tributary do, seen with one's own eyes on one machine?
//
// It brings up cored and a tree of boxes under it, plays the story and takes everything
// down. It boots one relay and two field devices as machines, from the images that make
// image builds; DEMO=ns makes two relays and three field devices of processes in network
// namespaces instead. KEEP=1 leaves the tree up.
package main

import (
	"cmp"
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
	form := flag.String("form", cmp.Or(os.Getenv("DEMO"), "vm"), "vm: boxes are machines; ns: boxes in namespaces")
	dir := flag.String("dir", "", "folder for the boxes' disks and logs (default: a new one in the system's temporary folder)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	forms := map[string]func(context.Context, string, bool) error{"ns": namespaces, "vm": onMachines}
	play, ok := forms[*form]
	if !ok {
		fmt.Fprintf(os.Stderr, "demo: no form %q: ns, vm\n", *form)
		os.Exit(2)
	}
	if err := play(ctx, *dir, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// namespaces plays on boxes that are processes in network namespaces.
func namespaces(ctx context.Context, dir string, keep bool) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := lab.Root(); err != nil {
		return err
	}
	ours := dir == ""
	if ours {
		if dir, err = os.MkdirTemp("", "tributary-demo-"); err != nil {
			return err
		}
	}
	l, err := lab.New(ctx, lab.Spec{Name: fmt.Sprintf("tb%d", os.Getpid()%100000), Bin: cmp.Or(os.Getenv("TRIBUTARY_BIN"), filepath.Join(root, "bin")), Dir: dir,
		Boxes: lab.Tree(), CoredArgs: story.CoredArgs})
	if err != nil {
		return err
	}
	s := &story.Story{Lab: l, Root: root, Out: os.Stdout, Fields: []string{"field-1", "field-2", "field-3"}, Wait: 90 * time.Second}
	defer func() {
		if keep && ctx.Err() == nil {
			env, envErr := l.EdgectlEnv()
			err = errors.Join(err, envErr, waitForUser(ctx, filepath.Join(l.Dir, "shell"), shellScript(root, l.Bin, l.CoreDir(), env, l.CorePrefix())))
		}
		if err = errors.Join(err, l.Close()); err == nil && ours && !keep {
			err = os.RemoveAll(dir)
			return
		}
		fmt.Fprintf(os.Stderr, "\nThe boxes' disks and logs are left in %s\n", dir)
	}()
	if err := s.Play(ctx); err != nil {
		return err
	}
	s.Say("done: nothing was lost, and nothing was counted twice")
	return nil
}

// waitForUser leaves the tree up and says how to reach it, until a signal.
func waitForUser(ctx context.Context, path, script string) error {
	// Only the owner may read it: it holds the administrator's token.
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		return err
	}
	fmt.Printf("\nThe tree is up. This opens a shell in the core's network, with edgectl in the path and logged in; run it in another terminal:\n\n  %s\n\nCtrl-C here takes the tree down.\n", path)
	<-ctx.Done()
	return nil
}

// shellScript opens a shell in the core's network, or runs the command that it is given.
func shellScript(root, bin, data string, env, prefix []string) string {
	var b strings.Builder
	b.WriteString("#!/bin/bash\n# A shell on the demo's core; with arguments, a command there.\n")
	for _, v := range append(env, "DATA="+data, "PATH="+bin+":"+os.Getenv("PATH")) {
		name, value, _ := strings.Cut(v, "=")
		if name != "HOME" { // a person keeps their own
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	fmt.Fprintf(&b, "cd %s || exit\n[ $# -gt 0 ] || set -- bash\nexec", quote(root))
	for _, arg := range prefix {
		b.WriteString(" " + quote(arg))
	}
	b.WriteString(" \"$@\"\n")
	return b.String()
}

// quote makes one word of the shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
