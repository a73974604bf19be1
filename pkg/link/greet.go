package link

// GreetFrame asks a child to say hello. A parent whose broker outlives it sends it to
// children that may be connected still: they would not notice that their parent began
// again until they next had something to send.
func GreetFrame() []byte { return packFrame(putMessage(nil, downGreet, 0)) }
