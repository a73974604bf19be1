// Command bare answers: how soon can a machine's first process speak? It does nothing else.
package main

import "os"

func main() {
	_, _ = os.Stdout.WriteString("bare: ready\n")
	for {
		_, _ = os.Stdin.Read(make([]byte, 1)) // the console never ends; should it, the kernel has nothing to run
	}
}
