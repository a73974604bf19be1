// Package cpulist answers: which processors does a list or mask of the kernel's name?
//
// Forms are those of cpuset(7): lists "0-3,8", masks of hexadecimal words of 32 bits,
// "ff,00000001", the highest first.
package cpulist

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxCPU bounds what a list may name; Linux has at most 8192.
const maxCPU = 1 << 16

// Parse reads a list. What cannot be read is left out.
func Parse(list string) []int {
	var out []int
	for _, part := range strings.Split(strings.TrimSpace(list), ",") {
		low, high, ranged := strings.Cut(part, "-")
		a, err := strconv.Atoi(low)
		b := a
		if ranged && err == nil {
			b, err = strconv.Atoi(high)
		}
		if err != nil || a < 0 || b < a || b >= maxCPU {
			continue
		}
		for n := a; n <= b; n++ {
			out = append(out, n)
		}
	}
	return out
}

// Format writes a list, in order and each once.
func Format(cpus []int) string {
	cpus = slices.Compact(slices.Sorted(slices.Values(cpus)))
	var parts []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(cpus[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", cpus[i], cpus[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// ParseMask reads a mask; nil when it is none.
func ParseMask(mask string) []int {
	words := strings.Split(strings.TrimSpace(mask), ",")
	if len(words) > maxCPU/32 {
		return nil
	}
	var out []int
	for i, word := range words {
		v, err := strconv.ParseUint(word, 16, 32)
		if err != nil {
			return nil
		}
		for bit := range 32 {
			if v>>bit&1 == 1 {
				out = append(out, 32*(len(words)-1-i)+bit)
			}
		}
	}
	slices.Sort(out)
	return out
}

// FormatMask writes a mask.
func FormatMask(cpus []int) string {
	words := make([]uint32, 1)
	for _, n := range cpus {
		for n/32 >= len(words) {
			words = append(words, 0)
		}
		words[n/32] |= 1 << (n % 32)
	}
	out := fmt.Sprintf("%x", words[len(words)-1])
	for i := len(words) - 2; i >= 0; i-- {
		out += fmt.Sprintf(",%08x", words[i])
	}
	return out
}
