package main

import (
	"fmt"
	"os"
	"strings"

	"tributary.dev/tributary/pkg/edge/boot/kmod"
)

// modprobe is what the kernel calls as "modprobe -q -- name" (kernel/module/kmod.c): name is
// a module or an alias.
func modprobe(args []string) int {
	quiet := false
	var names []string
	for _, a := range args {
		switch {
		case a == "-q":
			quiet = true
		case !strings.HasPrefix(a, "-"):
			names = append(names, a)
		}
	}
	tree, err := kmod.Open("/lib/modules/" + release())
	if err == nil {
		for _, name := range names {
			if err = tree.LoadAlias(name); err != nil {
				break
			}
		}
	}
	if err == nil {
		return 0
	}
	if !quiet {
		fmt.Fprintln(os.Stderr, "modprobe:", err)
	}
	return 1
}
