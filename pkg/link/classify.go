package link

// Classify tells, by class, how the bytes of a frame's messages share it, before
// compression. up says whether it goes towards the core. An unreadable frame is other.
func Classify(frame []byte, up bool) (shares [4]int) {
	msgs, err := splitFrame(frame)
	if err != nil {
		shares[ClassOther] = len(frame)
		return shares
	}
	class := downClass
	if up {
		class = upClass
	}
	for _, m := range msgs {
		shares[class(m.typ)] += len(m.raw)
	}
	return shares
}
