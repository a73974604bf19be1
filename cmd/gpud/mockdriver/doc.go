// Package mockdriver answers: what would NVIDIA's driver refuse, where go-nvml's mock of a card says yes?
//
// The mock knows a card's profiles and places, but lays slices over each other, removes
// them while they are used, and forgets all when its process ends. This wraps it, for tests:
// it refuses what the driver refuses, and keeps what a card keeps in a file. Nothing of the
// product imports it. It needs C, as the mock does.
package mockdriver
