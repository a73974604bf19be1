package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/audit"
	"tributary.dev/tributary/pkg/core/backup"
	"tributary.dev/tributary/pkg/core/ca"
	"tributary.dev/tributary/pkg/core/intake"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// Where things stand in a backup; the rest has the place that it has in the data folder.
const (
	bundlesDir = "bundles"        // bundles/<n>.json: an app bundle, named by bundlesIndex
	imagesFile = "artifacts.json" // what the registry held, for a backup without --artifacts
)

// bundleRef places one bundle back into a registry.
type bundleRef struct{ File, Repo, Digest string }

func backupCommand() *cobra.Command {
	var dir, passphrase, recipients string
	var artifacts bool
	cmd := &cobra.Command{Use: "backup FILE", Short: "Write an encrypted backup, also while the core runs", Args: cobra.ExactArgs(1),
		Long: `Write an encrypted backup, also while the core runs.

It holds the databases, keys and certificates, admin token and app bundles; with
--artifacts everything else in the registry, too. When it is written, devices may
forget the records that it counts.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := recipientsOf(passphrase, recipients)
			if err != nil {
				return err
			}
			h, err := makeBackup(cmd.Context(), data(dir), args[0], to, artifacts)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: epoch %d, %s\n", args[0], h.Epoch, h.Created.Format(time.RFC3339))
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder of the core")
	f.StringVar(&passphrase, "passphrase-file", "", "file whose first line is the passphrase (default: ask)")
	f.StringVar(&recipients, "recipients-file", "", "file of age recipients (age1…), one a line, instead of a passphrase")
	f.BoolVar(&artifacts, "artifacts", false, "include images and everything else in the registry")
	return cmd
}

func recipientsOf(passphraseFile, recipientsFile string) ([]age.Recipient, error) {
	if recipientsFile != "" {
		f, err := os.Open(recipientsFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return age.ParseRecipients(f)
	}
	pass, err := passphraseOf(passphraseFile, "Passphrase for the backup: ")
	if err != nil {
		return nil, err
	}
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		return nil, err
	}
	return []age.Recipient{r}, nil
}

func passphraseOf(file, prompt string) (string, error) {
	var b []byte
	var err error
	if file != "" {
		b, err = os.ReadFile(file)
	} else if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		fmt.Fprint(os.Stderr, prompt)
		b, err = term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
	} else {
		err = &api.Error{Code: api.Invalid, Message: "there is no passphrase and nobody to ask", Remedy: "pass --passphrase-file, or --recipients-file or --identity-file"}
	}
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", &api.Error{Code: api.Invalid, Message: "the passphrase is empty"}
	}
	return line, nil
}

// makeBackup copies the databases first, then what they refer to; so the backup refers to
// nothing that it does not hold. The ledger comes before the store: a device that the ledger
// counts is known to the store.
func makeBackup(ctx context.Context, d data, file string, to []age.Recipient, artifacts bool) (_ *backup.Header, err error) {
	if err := d.exists(); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(string(d), ".backup-*")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	counted, err := copyLedger(ctx, d, filepath.Join(tmp, "ledger.db"))
	if err != nil {
		return nil, err
	}
	db, err := d.openStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	secretKey, err := copyStore(ctx, d, db, filepath.Join(tmp, "core.db"))
	if err != nil {
		return nil, fmt.Errorf("copy the store: %w", err)
	}
	h := &backup.Header{Version: version, Created: time.Now().UTC().Truncate(time.Second), Artifacts: artifacts}
	if h.Epoch, err = db.Epoch(ctx); err != nil {
		return nil, err
	}
	entries := []backup.Entry{{Name: "core.db", Path: filepath.Join(tmp, "core.db")}, {Name: "ledger.db", Path: filepath.Join(tmp, "ledger.db")}}
	if secretKey != nil {
		entries = append(entries, backup.Entry{Name: "secret.key", Data: secretKey})
	}
	more, err := keysAndToken(d)
	if err != nil {
		return nil, err
	}
	entries = append(entries, more...)
	if artifacts {
		more, err = wholeRegistry(d)
	} else {
		more, err = bundlesOnly(ctx, d, db)
	}
	if err != nil {
		return nil, fmt.Errorf("read the registry: %w", err)
	}
	if err := backup.Create(file, to, *h, append(entries, more...)); err != nil {
		return nil, err
	}
	if err := db.NoteBackup(ctx); err != nil {
		return nil, err
	}
	return h, markSafe(ctx, d, counted)
}

// maxCopies bounds how often a copy begins anew because keys were rotated meanwhile.
const maxCopies = 10

// copyStore copies the store, and gives the key that opens the copy's secrets; nil while
// there is none.
func copyStore(ctx context.Context, d data, db *store.SQL, path string) ([]byte, error) {
	read := func() ([]byte, error) {
		b, err := os.ReadFile(d.secretKey())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	before, err := read()
	for range maxCopies {
		if err != nil {
			return nil, err
		}
		if err := db.BackupTo(ctx, path); err != nil {
			return nil, err
		}
		var after []byte
		if after, err = read(); err != nil || bytes.Equal(before, after) {
			return after, err
		}
		before, err = after, os.Remove(path)
	}
	return nil, &api.Error{Code: api.Unavailable, Message: "the key of secrets changes all the time", Remedy: "try again when nobody rotates it"}
}

func copyLedger(ctx context.Context, d data, path string) (_ intake.Watermark, err error) {
	in, err := d.openLedger(ctx, intake.Config{Now: time.Now})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	return in.BackupTo(ctx, path)
}

func keysAndToken(d data) ([]backup.Entry, error) {
	keys, err := ca.Snapshot(d.ca())
	if err != nil {
		return nil, err
	}
	var out []backup.Entry
	for name, b := range keys {
		out = append(out, backup.Entry{Name: "ca/" + filepath.ToSlash(name), Data: b})
	}
	for _, name := range append([]string{d.auditKey()}, audit.HeadFiles(d.heads())...) {
		b, err := os.ReadFile(name)
		if err == nil {
			out = append(out, backup.Entry{Name: filepath.Base(name), Data: b})
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	token, err := os.ReadFile(d.adminToken())
	if err == nil {
		out = append(out, backup.Entry{Name: "admin.token", Data: token})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return out, nil
}

func wholeRegistry(d data) (out []backup.Entry, err error) {
	err = filepath.WalkDir(d.registry(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(string(d), path)
		if err == nil && !strings.Contains(filepath.ToSlash(rel), "/_uploads/") {
			out = append(out, backup.Entry{Name: filepath.ToSlash(rel), Path: path})
		}
		return err
	})
	return out, err
}

// bundlesOnly takes the small part of the registry that only the core can make, and a
// list of the large part, which people push again.
func bundlesOnly(ctx context.Context, d data, db *store.SQL) (out []backup.Entry, err error) {
	reg, err := openRegistryQuietly(d.registry())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	apps, _, _, err := db.List(ctx, store.Query{Kind: api.KindApp})
	if err != nil {
		return nil, err
	}
	var index []bundleRef
	images := []api.AppImage{}
	for i, o := range apps {
		var s api.AppObjectStatus
		if json.Unmarshal(o.Status, &s) != nil || s.Bundle == "" {
			continue
		}
		raw, err := reg.Bundle(ctx, s.Repo, s.Bundle)
		if err != nil {
			return nil, err
		}
		ref := bundleRef{File: fmt.Sprintf("%s/%d.json", bundlesDir, i), Repo: s.Repo, Digest: s.Bundle}
		index, images = append(index, ref), append(images, s.Images...)
		out = append(out, backup.Entry{Name: ref.File, Data: raw})
	}
	for name, v := range map[string]any{bundlesDir + "/index.json": index, imagesFile: images} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, err
		}
		out = append(out, backup.Entry{Name: name, Data: b})
	}
	return out, nil
}

// openRegistryQuietly opens the registry to read and write in process alone.
func openRegistryQuietly(dir string) (*registry.Registry, error) {
	nobody := func(*http.Request, registry.Access) error { return api.Errorf(api.Forbidden, "not served") }
	return registry.New(registry.Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Authorize: nobody})
}

func restoreCommand() *cobra.Command {
	var dir, passphrase, identities, place string
	cmd := &cobra.Command{Use: "restore FILE", Short: "Make a core from a backup, on this host, under a new epoch", Args: cobra.ExactArgs(1),
		Long: `Make a core from a backup, on this host, under a new epoch.

The folder must not hold a core. Devices accept the restored core because it has
the keys, wherever it stands, as long as they reach it at an address that they
know. They send again what the backup did not count. Never run the old core
again: its epoch is over.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			by, err := identitiesOf(passphrase, identities)
			if err != nil {
				return err
			}
			h, epoch, err := restoreBackup(cmd.Context(), data(dir), place, args[0], by)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: restored the backup of %s; epoch %d follows %d\n", dir, h.Created.Format(time.RFC3339), epoch, h.Epoch)
			fmt.Fprintln(cmd.OutOrStdout(), "What people did since is undone: retire again what was retired, delete again tokens that were deleted.\n"+
				"Boxes that enrolled since come back by themselves and wait: `edgectl device approve NAME`.")
			if !h.Artifacts {
				fmt.Fprintf(cmd.OutOrStdout(), "images are not in it: push those of %s again\n", data(dir).path(imagesFile))
			}
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&dir, "data", "/var/lib/cored", "folder of the new core")
	f.StringVar(&place, "database", "", "postgres://… of an empty PostgreSQL database for the new core (default: files in --data)")
	f.StringVar(&passphrase, "passphrase-file", "", "file whose first line is the passphrase (default: ask)")
	f.StringVar(&identities, "identity-file", "", "file of age identities (AGE-SECRET-KEY-1…) instead of a passphrase")
	return cmd
}

func identitiesOf(passphraseFile, identityFile string) ([]age.Identity, error) {
	if identityFile != "" {
		f, err := os.Open(identityFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return age.ParseIdentities(f)
	}
	pass, err := passphraseOf(passphraseFile, "Passphrase of the backup: ")
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(pass)
	if err != nil {
		return nil, err
	}
	return []age.Identity{id}, nil
}

// restoreBackup makes the new folder beside its place and moves it there whole, so that
// there is a restored core or none. Its databases go to place, when that is not "".
func restoreBackup(ctx context.Context, d data, place, file string, by []age.Identity) (_ *backup.Header, epoch uint64, err error) {
	if entries, err := os.ReadDir(string(d)); len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, errors.Join(err, &api.Error{Code: api.Conflict, Message: string(d) + " is not empty", Remedy: "restore into a folder that does not exist yet"})
	}
	parent := filepath.Dir(filepath.Clean(string(d)))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, 0, err
	}
	tmp, err := os.MkdirTemp(parent, ".restore-*")
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	h, err := backup.Extract(file, by, tmp)
	if err != nil {
		return nil, 0, err
	}
	epoch = max(h.Epoch+1, uint64(time.Now().Unix()))
	if err := settle(ctx, data(tmp), epoch, h.Created); err != nil {
		return nil, 0, err
	}
	appear := func() error {
		if err := os.Remove(string(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(tmp, string(d)); err != nil {
			return err
		}
		return atomicfile.SyncDir(parent)
	}
	if place == "" {
		return h, epoch, appear()
	}
	_, err = data(tmp).move(ctx, "", "", place, func() error {
		for _, p := range parts {
			for _, more := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(data(tmp).path(p.file + more)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		if err := data(tmp).setDatabase(place); err != nil {
			return err
		}
		return appear()
	})
	return h, epoch, err
}

// settle makes a core of the files of a backup.
func settle(ctx context.Context, d data, epoch uint64, made time.Time) (err error) {
	db, err := d.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	restored := api.AuditEntry{Action: audit.ActionRestored, Message: fmt.Sprintf("the core was made from its backup of %s, under epoch %d; rows written since are lost with the old one", made.Format(time.RFC3339), epoch)}
	if err := errors.Join(db.SetEpoch(ctx, epoch), db.SetRestored(ctx, made), db.Audit(ctx, restored)); err != nil {
		return err
	}
	b, err := os.ReadFile(d.path(bundlesDir + "/index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the whole registry was in it
	}
	if err != nil {
		return err
	}
	var index []bundleRef
	if err := json.Unmarshal(b, &index); err != nil {
		return err
	}
	reg, err := openRegistryQuietly(d.registry())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	for _, ref := range index {
		raw, err := os.ReadFile(d.path(ref.File))
		if err != nil {
			return err
		}
		if digest, _, err := reg.PutBundle(ctx, ref.Repo, raw); err != nil || digest != ref.Digest {
			return fmt.Errorf("bundle %s@%s: became %s: %w", ref.Repo, ref.Digest, digest, err)
		}
	}
	return os.RemoveAll(d.path(bundlesDir))
}
