// Package accel answers: into which slices is a card cut, and what does who holds one need to use it?
//
// The decisions are plain functions: PlanMIG (which slices to make and to remove), Share
// (what time-slicing and MPS take), Judge (what a fault asks for), Meter (who used how
// much). What a card can do, the card tells; no table of cards is here. NVIDIA's library
// needs C, so it is in a program of its own; package gpud has its protocol and looks after it.
// Cards of AMD and Intel need no library: the inventory finds them on the bus.
package accel
