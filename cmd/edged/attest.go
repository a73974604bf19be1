package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/edge/boot"
	"tributary.dev/tributary/pkg/identity"
	"tributary.dev/tributary/pkg/tpm/attest"
)

// hasTPM tells whether process 1 of this box answers for a TPM.
func hasTPM() bool {
	for _, path := range []string{boot.Socket, "/sys/class/tpm/tpm0"} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// bootName names this start of a box with a TPM; empty on others.
func bootName() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 8 || !hasTPM() {
		return ""
	}
	return string(b[:8])
}

// attest answers the core's question what this box runs, and where STATE's key is to go into the
// TPM, gives the core a key of it in escrow first.
func (b *box) attest(ctx context.Context, nonce []byte, talk io.ReadWriter) error {
	// One at a time, from the report to what follows from its answer: of two keys given in escrow
	// the core keeps the later, and the TPM would have the earlier.
	b.attesting.Lock()
	defer b.attesting.Unlock()
	me := b.member.Live.Get()
	report, key, err := describe(ctx, nonce, me, b.again)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := json.NewEncoder(talk).Encode(report); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(io.LimitReader(talk, 4<<10), 4<<10).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("the core's answer: %w", err)
	}
	var reply attest.Reply
	if err := json.Unmarshal(line, &reply); err != nil {
		return err
	}
	if reply.Refused != "" {
		b.log.Warn("the core does not believe this box's TPM", "why", reply.Refused)
	} else {
		forgetWords(wordsFile, report.Boot)
	}
	b.again = reply.Again
	if !reply.Escrowed || key == nil || report.Sealed == "tpm2" { // the TPM has that already
		return nil
	}
	root := identity.Fingerprint(me.Trust.Root)
	err = boot.Escrow(ctx, key, boot.Recovery{Device: me.ID().String(), Parents: b.parents.Roots(), Root: root[:]})
	if err != nil {
		b.log.Warn("STATE's key does not go into the TPM", "err", err)
	}
	return err
}

// describe makes the report, with the key that goes into escrow where one is to: a new one on the way into the TPM, or
// again that which the TPM keeps, for a core that lost it.
func describe(ctx context.Context, nonce []byte, me *identity.Identity, again bool) (r attest.Report, key []byte, err error) {
	q, err := boot.Quote(ctx, nonce)
	if errors.Is(err, boot.ErrNoTPM) || errors.Is(err, os.ErrNotExist) {
		return attest.Report{Unable: boot.ErrNoTPM.Error()}, nil, nil
	}
	if err != nil {
		return r, nil, &api.Error{Code: api.Unavailable, Message: "the TPM does not answer", Err: err}
	}
	r = attest.Report{Boot: bootName(), Evidence: q.Evidence, Attestation: q.Attestation, Endorsement: q.Endorsement, Sealed: q.Sealed, Unfit: q.Unfit, Key: q.Key}
	for _, w := range keptWords(wordsFile) {
		r.Words = append(r.Words, w.Word)
	}
	if again = again && q.Sealed == "tpm2"; !q.Ready && !again {
		return r, nil, nil
	}
	to, ok := me.Trust.Sealing.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return r, nil, errors.New("the core's sealing key is of another type")
	}
	key = make([]byte, 32)
	if again {
		key, err = boot.SealedKey(ctx)
	} else {
		_, err = rand.Read(key)
	}
	if err != nil {
		return r, nil, err
	}
	r.Escrow, err = identity.Seal(to, identity.SealInfo{Device: me.ID(), Name: attest.EscrowName}, key)
	return r, key, err
}
