package main

// bare is where the kernel enters the program that `make build` links (-E main.bare),
// instead of Go's runtime: see main.go. Never called.
func bare()

var (
	standIn [64]uintptr // in place of the runtime's g
	thread  [2]uintptr  // the word below FS points to standIn

	_ = bare // these are used by bare_amd64.s alone
	_ = &standIn
	_ = &thread
)
