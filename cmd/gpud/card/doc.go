// Package card answers: what does NVIDIA's library say of the cards, and how is it told to cut them?
//
// It is a thin hand: it reads and does one thing at a time; what to do is decided in
// pkg/edge/accel. The library is loaded when the program runs, so a box without it has the
// program and is told that the driver is missing. The binding needs C; without it
// (CGO_ENABLED=0) this package is empty.
package card
