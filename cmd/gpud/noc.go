//go:build !cgo

package main

import (
	"fmt"
	"io"
	"os"
)

func serve(io.Reader, io.Writer) int {
	fmt.Fprintln(os.Stderr, "gpud: built without C, so without NVIDIA's library; install a C compiler and run make build")
	return 2
}
