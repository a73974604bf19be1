package api

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ParseParent reads host[:mqtt-port[,https-port]], where a device attaches; MQTT's port is
// 8883 where none is named. An IPv6 address with a port stands in brackets.
func ParseParent(text string) (p ParentRef, err error) {
	addr, https, both := strings.Cut(text, ",")
	if both {
		if p.HTTPSPort, err = tcpPort(https); err != nil {
			return p, err
		}
	}
	host, mqtt, err := net.SplitHostPort(addr)
	if err != nil { // no port
		host, mqtt = strings.Trim(addr, "[]"), "8883"
	}
	if _, err := tcpPort(mqtt); err != nil {
		return p, err
	}
	if host == "" {
		return p, errors.New("no host")
	}
	p.Address = net.JoinHostPort(host, mqtt)
	return p, nil
}

func tcpPort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return n, nil
}
