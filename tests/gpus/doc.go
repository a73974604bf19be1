// Package gpus answers: does an app get the slice of a card that it asks for, from `edgectl apply` to its container and to what is billed?
//
// cored, edged and containerd are real, as is gpud, whose library is go-nvml's mock. It needs C, as the mock does, so it
// is run by `make vmtest`.
package gpus
