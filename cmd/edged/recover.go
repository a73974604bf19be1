package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/agent"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/identity"
)

// recoverEvery is the pause between two questions to the core; a person stands behind the answer.
const recoverEvery = 15 * time.Second

// recoverState is edged recover: process 1 starts it where STATE is shut, since its TPM does not
// give the key, and the core has it in escrow. It asks until the core gives it.
func recoverState(ctx context.Context, args []string, errs io.Writer) error {
	flags := flag.NewFlagSet("edged recover", flag.ContinueOnError)
	flags.SetOutput(errs)
	file := flags.String("file", boot.Dir+"/recovery.json", "what STATE's header says of its recovery")
	parent := flags.String("parent", "", "a parent beside those of the file")
	every := flags.Duration("every", recoverEvery, "pause between two questions")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := readRecovery(*file)
	if err != nil {
		return err
	}
	if *parent != "" {
		list, err := parseParents(*parent)
		if err != nil {
			return err
		}
		for _, url := range agent.Roots(list) {
			if !slices.Contains(r.Parents, url) {
				r.Parents = append(r.Parents, url)
			}
		}
	}
	log := slog.New(slog.NewTextHandler(errs, nil))
	for {
		why, err := askAround(ctx, r)
		if err == nil && why == "" {
			log.Info("STATE's key came back; the box starts anew")
			return nil
		}
		if err != nil {
			why = err.Error()
		}
		log.Info("waiting", "why", why)
		if err := boot.Waits(ctx, why[:min(len(why), 400)]); err != nil {
			log.Warn("process 1 is not told", "err", err)
		}
		pause := *every + rand.N(*every/4+1)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// recovery is boot.Recovery, read.
type recovery struct {
	device  api.DeviceID
	root    [32]byte
	why     string
	Parents []string
}

func readRecovery(path string) (*recovery, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r boot.Recovery
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, err
	}
	id, err := api.ParseDeviceID(r.Device)
	if err != nil || len(r.Root) != 32 {
		return nil, errors.Join(err, errors.New("the recovery names no device and root"))
	}
	return &recovery{device: id, root: [32]byte(r.Root), why: r.Why, Parents: r.Parents}, nil
}

// askAround asks one parent after the other, until one passes the question to the core. why is
// what the core is waiting for; empty when it gave the key.
func askAround(ctx context.Context, r *recovery) (why string, err error) {
	var faults []error
	for _, url := range r.Parents {
		reply, err := identity.Recover(ctx, identity.RecoverConfig{ParentURL: url, Root: r.root, Device: r.device, Reason: r.why, Evidence: func(ctx context.Context, nonce [32]byte) ([]byte, error) {
			q, err := boot.Quote(ctx, nonce[:])
			if err != nil {
				return nil, err
			}
			return q.Evidence, nil
		}})
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", url, err))
			continue
		}
		if len(reply.Blob) == 0 {
			return reply.Message, nil
		}
		return "", boot.Unlock(ctx, reply.Blob, reply.Secret)
	}
	return "", errors.Join(faults...)
}
