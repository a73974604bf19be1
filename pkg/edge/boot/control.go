package boot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// Socket is where process 1 listens to the other programs of the box; root alone may
// open it. One JSON object a line goes in, one comes back.
const Socket = Dir + "/init.sock"

// What can be asked for.
const (
	doStatus   = "status"
	doReboot   = "reboot"
	doPowerOff = "poweroff"

	doQuote    = "quote"    // Nonce → Quoted
	doEscrow   = "escrow"   // Key, Recovery: the core has it
	doWait     = "wait"     // Reason: why the core does not give STATE's key yet
	doUnlock   = "unlock"   // Blob, Secret: STATE's key, encrypted to the TPM
	doFloor    = "floor"    // Counter, to raise it → Floor
	doForetell = "foretell" // PCR7: what may come → Foretold
	doKey      = "key"      // → Key
	doIdentity = "identity" // Digest, to sign it → Public, Signature
	doShut     = "shut"     // a person gets a root shell: the TPM gives nothing more, and notes it
)

type request struct {
	Do     string `json:"do"`
	Reason string `json:"reason,omitempty"`

	Nonce    []byte    `json:"nonce,omitempty"`
	Key      []byte    `json:"key,omitempty"`
	Recovery *Recovery `json:"recovery,omitempty"`
	Blob     []byte    `json:"blob,omitempty"`
	Secret   []byte    `json:"secret,omitempty"`
	Counter  uint64    `json:"counter,omitempty"`
	PCR7     [][]byte  `json:"pcr7,omitempty"`
	Digest   []byte    `json:"digest,omitempty"`
}

// Answer is what process 1 says.
type Answer struct {
	Error                  string        `json:"error,omitempty"`
	NoTPM                  bool          `json:"noTPM,omitempty"` // the error is ErrNoTPM
	Children               []ChildStatus `json:"children,omitempty"`
	Quoted                 *Quoted       `json:"quoted,omitempty"`
	Floor                  uint64        `json:"floor,omitempty"`
	Foretold               *Foretold     `json:"foretold,omitempty"`
	Public, Signature, Key []byte        `json:",omitempty"`
}

func (b *booter) serveControl(ctx context.Context) error {
	_ = os.Remove(Socket) // none, on a fresh /run
	l, err := net.Listen("unix", Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(Socket, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Second) // out of files, most likely
				continue
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				_ = guarded(ctx, func(ctx context.Context) error {
					a := b.answer(ctx, conn)
					_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // the TPM takes its time
					return json.NewEncoder(conn).Encode(a)
				})
			}()
		}
	}()
	return nil
}

func (b *booter) answer(ctx context.Context, r io.Reader) Answer {
	line, err := bufio.NewReaderSize(io.LimitReader(r, 4<<10), 4<<10).ReadSlice('\n')
	if err != nil {
		return Answer{Error: "one line of JSON is wanted"}
	}
	q, err := parseRequest(line)
	if err != nil {
		return Answer{Error: err.Error()}
	}
	var a Answer
	switch q.Do {
	case doStatus:
		b.mu.Lock()
		children := b.children
		b.mu.Unlock()
		for _, c := range children {
			a.Children = append(a.Children, c.status())
		}
	case doReboot, doPowerOff:
		b.ask(q)
	default:
		err := b.keyRequest(ctx, q, &a)
		if err != nil {
			a.Error, a.NoTPM = err.Error(), errors.Is(err, ErrNoTPM)
		}
	}
	return a
}

func parseRequest(line []byte) (q request, err error) {
	if err := json.Unmarshal(line, &q); err != nil {
		return q, err
	}
	switch q.Do {
	case doStatus, doReboot, doPowerOff, doQuote, doEscrow, doWait, doUnlock, doFloor, doForetell, doIdentity, doKey, doShut:
		return q, nil
	}
	return q, errors.New("do is status, reboot, poweroff, quote, escrow, wait, unlock, floor, foretell, identity, key or shut")
}

// Ask asks process 1 of this box for "status", "reboot" or "poweroff", with a reason for
// the log. It returns when the wish is taken, not when it is fulfilled.
func Ask(ctx context.Context, do, reason string) (Answer, error) {
	return send(ctx, request{Do: do, Reason: reason}, 10*time.Second)
}

func send(ctx context.Context, q request, limit time.Duration) (Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", Socket)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(limit))
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		return Answer{}, err
	}
	var a Answer
	if err := json.NewDecoder(io.LimitReader(conn, 1<<20)).Decode(&a); err != nil {
		return Answer{}, err
	}
	if a.NoTPM {
		return a, ErrNoTPM
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}
