package boot

import (
	"io"
	"os"

	"tributary.dev/tributary/pkg/disk/wipe"
)

// finishReset goes on with a factory reset that a power cut has parted.
func (b *booter) finishReset(stateNode string) error {
	state, err := os.OpenFile(stateNode, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer state.Close()
	if pending, err := wipe.Pending(state); err != nil || !pending {
		return err
	}
	node, _, err := b.disk.ByLabel("data")
	if err != nil {
		return err
	}
	data, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer data.Close()
	stateSize, err := state.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	dataSize, err := data.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b.say("a factory reset goes on")
	return wipe.Run(state, data, stateSize, dataSize, func(stage string) { b.say("factory reset: %s", stage) })
}
