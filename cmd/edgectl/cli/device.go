package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/voucher"
)

func (a *app) deviceCommand() *cobra.Command {
	c := &cobra.Command{Use: "device", Short: "Expect, approve, retire or unlock devices"}
	var e expectFlags
	for verb, short := range map[string]string{
		"approve": "Let a device that enrolled receive what it is to run, or let a box in by its pairing code",
		"retire":  "Revoke a device's certificate, for good",
	} {
		done := map[string]string{"approve": "approved", "retire": "retired"}[verb]
		use := " NAME…"
		if verb == "approve" {
			use = " NAME|CODE…"
		}
		one := &cobra.Command{
			Use: verb + use, Short: short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completeDevices,
			RunE: func(cmd *cobra.Command, args []string) error {
				cl, err := a.client()
				if err != nil {
					return err
				}
				for _, name := range args {
					_, scanned := parseLabel(name)
					if verb == "approve" && (scanned || voucher.IsCode(name)) {
						if err := a.approveByCode(cmd, &e, name); err != nil {
							return err
						}
						continue
					}
					if _, err := cl.Act(cmd.Context(), strings.TrimPrefix(name, "device/"), verb); err != nil {
						return err
					}
					fmt.Fprintf(a.Out, "device/%s %s\n", name, done)
				}
				return nil
			},
		}
		if verb == "approve" {
			e.add(one)
			one.Long = short + `.

In place of a name: the pairing code that a box without an owner shows on its console, such as 7K2M-9QXA-4HTR, or
what the QR code of its label says. The box that shows the code then comes in, and no other.`
		}
		c.AddCommand(one)
	}
	c.AddCommand(a.unlockCommand(), a.unlockStateCommand(), a.expectCommand(), a.importCommand(), a.stickCommand(), a.hardwareCommand(), a.uncordonCommand())
	return c
}

// maxChallenge bounds what is read of a challenge, in bytes.
const maxChallenge = 1 << 10

func (a *app) unlockCommand() *cobra.Command {
	var challenge string
	c := &cobra.Command{
		Use: "unlock NAME --challenge TEXT", Short: "Answer the challenge of a box's console, which opens a root shell there", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDevices,
		Long:    "Answer the challenge that a box's console shows, as text and as a code, on its page Shell. Whoever types the answer there within a\nquarter of an hour gets a root shell, once. For the role rescuer and those that administrate; it is noted among the device's events first.",
		Example: "  edgectl device unlock field-3 --challenge 20Q7Y-…\n  edgectl device unlock field-3 --challenge - < challenge.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			if challenge == "-" {
				b, err := io.ReadAll(io.LimitReader(a.In, maxChallenge))
				if err != nil {
					return err
				}
				challenge = strings.TrimSpace(string(b))
			}
			if challenge == "" {
				return &api.Error{Code: api.Invalid, Field: "--challenge", Message: "no challenge is given", Remedy: "type what the box's console shows on its page Shell"}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			answer, err := cl.Unlock(cmd.Context(), strings.TrimPrefix(args[0], "device/"), challenge)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, answer.Answer)
			if !answer.Proven {
				fmt.Fprintf(a.Err, "The box could not read its own state, so who it is is its own word: be sure that you talk to somebody at %s.\n", args[0])
			}
			fmt.Fprintf(a.Err, "It opens a root shell, once, within a quarter of an hour of the challenge. In the events this is %s.\n", answer.Challenge)
			return nil
		},
	}
	c.Flags().StringVar(&challenge, "challenge", "", "what the box shows; - reads it from standard input")
	return c
}

func (a *app) tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make tokens with which boxes enrol"}
	c.AddCommand(a.tokenCreateCommand())
	return c
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var spec api.JoinTokenSpec
	var labels []string
	var expires time.Duration
	var quiet bool
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a join token and show it, this once", Args: cobra.ExactArgs(1),
		Example: "  edgectl token create field --auto-approve --labels role=field --uses 10 --expires 24h",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, pair := range labels {
				k, v, ok := strings.Cut(pair, "=")
				if !ok {
					return &api.Error{Code: api.Invalid, Field: "--labels", Message: fmt.Sprintf("%q is not a label", pair), Remedy: "write --labels role=field,rack=3"}
				}
				if spec.Labels == nil {
					spec.Labels = map[string]string{}
				}
				spec.Labels[k] = v
			}
			if expires < 0 {
				return &api.Error{Code: api.Invalid, Field: "--expires", Message: "the token would have expired already", Remedy: "give a time from now, such as 24h"}
			}
			if expires > 0 {
				at := a.now().Add(expires).UTC().Truncate(time.Second)
				spec.Expires = &at
			}
			o := &api.Object{Kind: api.KindJoinToken, Metadata: api.Meta{Name: args[0]}}
			setSpec(o, &spec)
			return a.createToken(cmd, o, quiet)
		},
	}
	f := c.Flags()
	f.BoolVar(&spec.AutoApprove, "auto-approve", false, "boxes need no approval")
	f.StringSliceVar(&labels, "labels", nil, "labels for the devices, e.g. role=field,rack=3")
	f.StringVar(&spec.Site, "site", "", "site of the devices")
	f.IntVar(&spec.Uses, "uses", 0, "so many boxes at most; 0 is no bound")
	f.DurationVar(&expires, "expires", 0, "valid for this long, e.g. 24h; 0 is for ever")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the token alone")
	return c
}

func (a *app) createToken(cmd *cobra.Command, o *api.Object, quiet bool) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	if o.Metadata.Tenant = cl.Tenant(); o.Metadata.Tenant == "" {
		api.SetDefaults(o)
	}
	o.APIVersion = api.Version
	if err := api.Validate(o); err != nil {
		return err
	}
	k, err := api.LookupKind(o.Kind)
	if err != nil {
		return err
	}
	created, err := cl.Create(cmd.Context(), k, o)
	if err != nil {
		return err
	}
	var st api.JoinTokenStatus
	if err := json.Unmarshal(created.Status, &st); err != nil || st.Token == "" {
		return &api.Error{Code: api.Internal, Message: "the core made the token but did not show it", Remedy: "delete it and make another: `edgectl delete jointoken " + o.Metadata.Name + "`", Err: err}
	}
	fmt.Fprintln(a.Out, st.Token)
	if !quiet {
		fmt.Fprintf(a.Err, "This is shown once. Start a box with it:\n  edged run --parent HOST --join-token %s\n", st.Token)
	}
	return nil
}
