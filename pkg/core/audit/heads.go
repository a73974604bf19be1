package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/core/database"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Head is the end of the log as it was at a time, signed.
type Head struct {
	Epoch uint64
	Seq   int64
	Time  time.Time
	Hash  []byte // of the row Seq
	Prev  []byte // SHA-256 of the line before in this file; of the first: zeros
}

const headPrefix = "tributary-audit-head-1"

// maxHeadLine bounds a line of a file of heads.
const maxHeadLine = 512

func (h *Head) signed() string {
	return fmt.Sprintf("%s %d %d %d %x %x", headPrefix, h.Epoch, h.Seq, h.Time.UnixMilli(), h.Hash, h.Prev)
}

func (k Key) signHead(h *Head) string {
	text := h.signed()
	return text + " " + base64.RawStdEncoding.EncodeToString(ed25519.Sign(k.sign, []byte(text)))
}

// parseHead reads a line and checks its signature.
func (k Key) parseHead(line string) (*Head, error) {
	if len(line) > maxHeadLine {
		return nil, errors.New("the line is too long")
	}
	f := strings.Split(line, " ")
	if len(f) != 7 || f[0] != headPrefix {
		return nil, errors.New("it is no head of an audit log")
	}
	h := &Head{}
	var errs [6]error
	var ms int64
	var sig []byte
	h.Epoch, errs[0] = strconv.ParseUint(f[1], 10, 64)
	h.Seq, errs[1] = strconv.ParseInt(f[2], 10, 64)
	ms, errs[2] = strconv.ParseInt(f[3], 10, 64)
	h.Hash, errs[3] = hex.DecodeString(f[4])
	h.Prev, errs[4] = hex.DecodeString(f[5])
	sig, errs[5] = base64.RawStdEncoding.DecodeString(f[6])
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	h.Time = time.UnixMilli(ms).UTC()
	if !ed25519.Verify(k.sign.Public().(ed25519.PublicKey), []byte(h.signed()), sig) || h.signed() != strings.Join(f[:6], " ") { // check: signature of a head
		return nil, errors.New("its signature is not by the core's key")
	}
	return h, nil
}

// Heads keeps the signed ends of the log in files outside of the database.
type Heads struct {
	key    Key
	chain  *Chain
	db     *database.DB
	files  []*headFile
	last   int64 // that is signed
	signed time.Time
}

type headFile struct {
	f    *os.File
	prev [sha256.Size]byte
}

// At most every headEvery, or headRows rows, an end is signed.
const (
	headLook  = time.Second
	headEvery = 10 * time.Second
	headRows  = 1000
)

// OpenHeads opens files of heads to go on with. A line that a power cut left unfinished is ended.
func OpenHeads(chain *Chain, db *database.DB, paths ...string) (_ *Heads, err error) {
	h := &Heads{key: chain.key, chain: chain, db: db}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, path := range paths {
		f, err := openHeadFile(path)
		if err != nil {
			return nil, fmt.Errorf("open the heads of the audit log: %w", err)
		}
		h.files = append(h.files, f)
	}
	return h, nil
}

// maxHeadFiles bounds how many cores write heads into one folder.
const maxHeadFiles = 64

// headPath is the n-th file for a path, from 0: each of several cores has its own.
func headPath(path string, n int) string {
	if n == 0 {
		return path
	}
	ext := filepath.Ext(path)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(path, ext), n+1, ext)
}

// HeadFiles lists the files of heads that there are for the paths that cores were told.
func HeadFiles(paths ...string) (out []string) {
	for _, path := range paths {
		for n := range maxHeadFiles {
			if _, err := os.Stat(headPath(path, n)); n == 0 || err == nil {
				out = append(out, headPath(path, n))
			}
		}
	}
	return out
}

// openHeadFile opens the first file that no other core writes.
func openHeadFile(path string) (*headFile, error) {
	for n := range maxHeadFiles {
		f, err := os.OpenFile(headPath(path, n), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return goOn(f)
		}
		if err = errors.Join(err, f.Close()); !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: %d cores write heads there already", path, maxHeadFiles)
}

func goOn(f *os.File) (*headFile, error) {
	out, path := &headFile{f: f}, f.Name()
	old, err := io.ReadAll(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if n := len(old); n > 0 && old[n-1] != '\n' {
		if _, err := f.WriteString("\n"); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	for line := range bytes.Lines(old) {
		if bytes.HasSuffix(line, []byte("\n")) {
			out.prev = sha256.Sum256(bytes.TrimSuffix(line, []byte("\n")))
		}
	}
	return out, atomicfile.SyncDir(filepath.Dir(path))
}

// Run signs as rows come, until ctx ends; then once more. What goes wrong is told to failed.
func (h *Heads) Run(ctx context.Context, failed func(error)) error {
	tick := time.NewTicker(headLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		seq, _, err := End(ctx, h.db)
		if err == nil && seq != h.last && (seq-h.last >= headRows || h.chain.now().Sub(h.signed) >= headEvery) {
			err = h.Sign(ctx)
		}
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}

// Sign signs the end of the log as it is now, where it is another than the last.
func (h *Heads) Sign(ctx context.Context) error {
	seq, hash, err := End(ctx, h.db)
	if err != nil || seq == h.last {
		return err
	}
	epoch, err := epochOf(ctx, h.db)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range h.files {
		head := &Head{Epoch: epoch, Seq: seq, Time: h.chain.now().UTC(), Hash: hash, Prev: f.prev[:]}
		line := h.key.signHead(head)
		if _, err := f.f.WriteString(line + "\n"); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := f.f.Sync(); err != nil {
			errs = append(errs, err)
			continue
		}
		f.prev = sha256.Sum256([]byte(line))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keep the head of the audit log: %w", err)
	}
	h.last, h.signed = seq, h.chain.now()
	return nil
}

// Close closes the files.
func (h *Heads) Close() (err error) {
	for _, f := range h.files {
		err = errors.Join(err, f.f.Close())
	}
	return err
}
