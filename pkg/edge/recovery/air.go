package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
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

// joinWiFi puts settings on trial that have a wireless network beside what there is.
func (a *Appliance) joinWiFi(fields map[string]string, say func(string)) error {
	var now *api.NetworkSettings
	var kept struct {
		Settings *api.NetworkSettings `json:"settings"`
	}
	if readJSON(a.path(a.State, "network.json"), &kept) == nil { // a closed state leaves what a box begins with
		now = kept.Settings
	}
	s, err := withWiFi(now, fields)
	if err != nil {
		return err
	}
	if err := a.wish(Wanted{Settings: &s}); err != nil {
		return err
	}
	say("The box joins it now. Watch this page: the settings are kept once the parent has been reached with them for a while.")
	return nil
}

// withWiFi adds a wireless network to the settings in force, behind cables; it takes the
// place of another on the same card.
func withWiFi(now *api.NetworkSettings, fields map[string]string) (api.NetworkSettings, error) {
	card := fields["link"]
	if !cardName(card) {
		return api.NetworkSettings{}, errors.New("name the wireless card")
	}
	s := api.NetworkSettings{Uplinks: []api.Uplink{{DHCP: true}}}
	if now != nil && len(now.Uplinks) > 0 {
		s.Uplinks = slices.Clone(now.Uplinks)
	}
	if now != nil {
		s.Proxy = now.Proxy
	}
	s.Uplinks = slices.DeleteFunc(s.Uplinks, func(u api.Uplink) bool { return u.WiFi != nil && cmp.Or(u.Match.Name, card) == card })
	s.Uplinks = append(s.Uplinks, api.Uplink{Match: api.UplinkMatch{Name: card}, DHCP: true,
		WiFi: &api.WiFi{SSID: fields["ssid"], Passphrase: fields["passphrase"], Hidden: fields["hidden"] == "yes", Country: strings.ToUpper(fields["country"])}})
	return s, s.Validate("")
}
