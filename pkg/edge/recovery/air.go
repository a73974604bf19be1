package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/uplink/trial"
	"tributary.dev/tributary/pkg/edge/uplink/wifi"
)

// searchAir tells which wireless networks are heard.
func (a *Appliance) searchAir(ctx context.Context, card string, say func(string)) error {
	if !cardName(card) {
		return errors.New("name the wireless card")
	}
	say("Listening...")
	list, err := wifi.Scan(ctx, wifi.Config{Link: card, Dir: a.path(a.Run, wifi.Dir), Program: a.path(wifi.Program)})
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

func terms(n wifi.Network) string {
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
	var kept trial.Trial
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
