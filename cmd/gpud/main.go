// Command gpud answers: how does the agent, which has no C in it, speak with NVIDIA's library?
//
// It loads the library, answers the agent's questions on its standard input and output
// (package pkg/edge/accel/gpud has the protocol), and ends when its input does. It has no
// flags and no state of its own. Exit status: 0 its input ended, 1 it could not go on, 2 it
// was built without C and can do nothing.
package main

import (
	"fmt"
	"os"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if len(args) > 0 {
		fmt.Fprintln(os.Stderr, "usage: gpud (no arguments; edged starts it where there is a card of NVIDIA's)")
		return 2
	}
	return serve(os.Stdin, os.Stdout)
}
