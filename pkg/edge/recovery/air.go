package recovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Joining is how far the joining of a wireless network is, as uplinks.json has it.
type Joining struct {
	SSID  string `json:"ssid"`
	State string `json:"state"`
}

// The states that the console has words for; it is looking in all others.
const (
	joined  = "joined"
	refused = "refused"
	absent  = "absent"
)

// Network is a wireless network that a search heard.
type Network struct {
	SSID string
	// Signal is in dBm.
	Signal int
	// Locked: it wants a passphrase. Foreign: it wants what this system does not do.
	Locked, Foreign bool
}

// searchAir tells which wireless networks are heard.
func (a *Appliance) searchAir(ctx context.Context, card string, say func(string)) error {
	if !cardName(card) {
		return errors.New("name the wireless card")
	}
	if a.Listen == nil {
		return errors.New("this console listens to no wireless networks")
	}
	say("Listening...")
	list, err := a.Listen(ctx, card)
	if err != nil {
		return err
	}
	for _, n := range list {
		say(fmt.Sprintf("%-8s %s%s", strength(n.Signal), n.SSID, terms(n)))
	}
	if len(list) == 0 {
		say("No network is heard. Is the antenna screwed on?")
	}
	return nil
}

// strength is a signal in words: what a person can do something with.
func strength(dBm int) string {
	switch {
	case dBm >= -60:
		return "strong"
	case dBm >= -75:
		return "fair"
	}
	return "weak"
}

func terms(n Network) string {
	switch {
	case n.Foreign:
		return " (wants what this system does not do)"
	case n.Locked:
		return ""
	}
	return " (open to all)"
}

func cardName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) < 16 && !strings.ContainsAny(name, "/ \t")
}
