// Package mqtt answers: how do frames of the link cross one hop, over MQTT 3.1.1 and
// mutual TLS?
//
// Three carriers behind the interfaces of pkg/link: Uplink is a device's way to its
// parent (paho client); Broker is a parent's way to its children (embedded mochi
// broker); External is the core's way to its children over a broker of its own
// (Mosquitto 2 with its dynamic-security plugin).
//
//	u/<id>  from device <id> to its parent; farewell, its last will, ends the session
//	d/<id>  from the parent to device <id>
//	m/<id>  the retained manifest of device <id>
//
// A client's id equals its certificate's common name, which is its device id; it
// publishes on its own u/ and subscribes to its own d/ and m/, nothing else. Sessions
// are clean and queues bounded in bytes: what a broker or client forgets, the link
// makes good.
package mqtt

import (
	"bytes"
	"strings"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/link"
)

// maxPacket bounds an MQTT packet: a frame of the link, its topic and header.
const maxPacket = link.MaxFrame + 1<<10

// Defaults.
const (
	// DefaultKeepAlive is long, since each ping with its answer costs about 170 bytes
	// with TLS and IP headers. A broken link is found sooner by what is sent:
	// see userTimeout.
	DefaultKeepAlive = 90 * time.Second
	// handshakeTimeout bounds TCP, TLS and MQTT handshakes, each.
	handshakeTimeout = 20 * time.Second
	// userTimeout is how long sent bytes may stay unacknowledged by the peer's TCP before
	// the connection is given up (RFC 5482).
	userTimeout = 30 * time.Second
	// writeTimeout bounds one MQTT packet's way into the socket.
	writeTimeout = 60 * time.Second
)

const (
	upPrefix       = "u/"
	downPrefix     = "d/"
	retainedPrefix = "m/"
)

// farewell is the payload of a device's last will. It is not empty, since mochi refuses
// empty wills; and no frame, since a frame is a CBOR array.
var farewell = []byte{0}

func isFarewell(payload []byte) bool { return len(payload) == 0 || bytes.Equal(payload, farewell) }

func upTopic(id api.DeviceID) string       { return upPrefix + id.String() }
func downTopic(id api.DeviceID) string     { return downPrefix + id.String() }
func retainedTopic(id api.DeviceID) string { return retainedPrefix + id.String() }

// childOf reads the device id out of a u/ topic.
func childOf(topic string) (api.DeviceID, bool) {
	text, ok := strings.CutPrefix(topic, upPrefix)
	if !ok {
		return api.DeviceID{}, false
	}
	id, err := api.ParseDeviceID(text)
	return id, err == nil && !id.IsZero()
}

func qos(reliable bool) byte {
	if reliable {
		return 1
	}
	return 0
}
