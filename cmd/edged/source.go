package main

import (
	"crypto/rand"
	"io"
	"time"
)

// The machine's own sources, which main hands to the libraries.
var (
	randReader io.Reader        = rand.Reader
	nowFunc    func() time.Time = time.Now
)
