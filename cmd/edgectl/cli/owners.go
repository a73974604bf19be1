package cli

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
	"tributary.dev/tributary/pkg/release"
)

// What the owners of release keys do, each where the key is. Nothing here talks to a core.

// inFile says of which file an error speaks.
func inFile(file string, err error) error {
	var e *api.Error
	if err == nil || !errors.As(err, &e) {
		if err != nil && !strings.Contains(err.Error(), file) {
			err = fmt.Errorf("%s: %w", file, err)
		}
		return err
	}
	if strings.Contains(e.Message, file) {
		return err
	}
	named := *e
	named.Message = file + ": " + e.Message
	return &named
}

func (a *app) releaseKeyCommand() *cobra.Command {
	return &cobra.Command{Use: "key FILE", Short: "Make a key: FILE is for its owner alone, FILE.pub for who makes the root", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(fresh(args[0]), fresh(args[0]+".pub")); err != nil {
				return err
			}
			k, err := release.NewKey(args[0])
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKIXPublicKey(k.Public())
			if err != nil {
				return err
			}
			if err := atomicfile.Write(args[0]+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
				return err
			}
			return sayKey(cmd.OutOrStdout(), k.Public())
		}}
}

func sayKey(out io.Writer, key crypto.PublicKey) error {
	id, err := release.KeyID(key)
	if err == nil {
		_, err = fmt.Fprintln(out, "key", id)
	}
	return err
}

func readPublic(file string) (crypto.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, &api.Error{Code: api.Invalid, Message: file + " is no public key in PEM", Remedy: "give the file that `edgectl release key` wrote with .pub, or openssl pkey -pubout"}
	}
	if strings.Contains(block.Type, "PRIVATE") {
		return nil, &api.Error{Code: api.Invalid, Message: file + " is a private key", Remedy: "give the public one, " + file + ".pub; the private one stays with its owner"}
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: file + " is no public key", Err: err}
	}
	return k, nil
}

func readPublics(files []string) (keys []crypto.PublicKey, err error) {
	for _, file := range files {
		k, err := readPublic(file)
		if err != nil {
			return nil, err
		}
		if _, err := release.KeyID(k); err != nil {
			return nil, inFile(file, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func (a *app) releaseRootCommand() *cobra.Command {
	var version int64
	var rootKeys, keys []string
	var rootThreshold, threshold int
	var life time.Duration
	var follows string
	c := &cobra.Command{Use: "root FILE", Short: "Write an unsigned root: which keys vouch for releases, and how many of them", Args: cobra.ExactArgs(1),
		Long: `Write an unsigned root. Then its owners sign it, each in turn: edgectl release sign --key KEY FILE. A root that
follows another (--follows) needs the signatures of the old one's keys as well as of its own. Keep every root: a box
that has the first takes the third only with the second.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fresh(args[0]); err != nil {
				return err
			}
			var old *release.Draft
			if follows != "" {
				var err error
				if _, old, err = readRoots([]string{follows}); err != nil {
					return err
				}
				if given := cmd.Flags().Changed("version"); given && version != old.Version()+1 { // check: next version
					return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("root %d does not follow root %d of %s", version, old.Version(), follows), Remedy: fmt.Sprintf("leave --version away, or give %d", old.Version()+1)}
				}
				version = old.Version() + 1
			} else if version > 1 {
				return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("root %d follows another", version), Remedy: "name that one: --follows FILE"}
			}
			if life <= 0 { // check: life
				return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("a root that lives for %s has ended already", life), Remedy: "give --life as hours, such as 43800h for five years"}
			}
			rk, err := readPublics(rootKeys)
			if err != nil {
				return err
			}
			sk, err := readPublics(keys)
			if err != nil {
				return err
			}
			raw, err := release.NewRoot(version, time.Now().Add(life).UTC().Truncate(time.Second), rk, rootThreshold, sk, threshold)
			if err != nil {
				return err
			}
			if err := atomicfile.Write(args[0], raw, 0o644); err != nil {
				return err
			}
			return showRoot(cmd.OutOrStdout(), raw, old)
		}}
	f := c.Flags()
	f.Int64Var(&version, "version", 1, "version of the root; one more than the one before")
	f.StringVar(&follows, "follows", "", "the root before it, as boxes have it")
	f.StringSliceVar(&rootKeys, "root-key", nil, "public key that may sign roots; may be repeated")
	f.IntVar(&rootThreshold, "root-threshold", 1, "how many of them a root needs")
	f.StringSliceVar(&keys, "key", nil, "public key that may sign releases; may be repeated")
	f.IntVar(&threshold, "threshold", 1, "how many of them a release needs")
	f.DurationVar(&life, "life", 5*365*24*time.Hour, "how long the root is good for")
	return c
}

// readRoots reads roots, oldest first, each signed as a box wants it, and gives the newest.
func readRoots(files []string) (chain [][]byte, newest *release.Draft, err error) {
	var trusted *release.Trusted
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		if newest, err = release.ReadRoot(raw); err != nil {
			return nil, nil, inFile(file, err)
		}
		switch {
		case trusted == nil:
			trusted, err = release.TrustRoot(raw)
		case newest.Version() != trusted.Version()+1:
			err = &api.Error{Code: api.Invalid, Message: fmt.Sprintf("root %d does not follow root %d", newest.Version(), trusted.Version()), Remedy: "give the roots in the order of their versions, each once"}
		default:
			trusted, err = trusted.Rotate(raw)
		}
		if err != nil {
			var e *api.Error
			if !errors.As(err, &e) || errors.Is(err, release.ErrNotSigned) {
				err = &api.Error{Code: api.Forbidden, Message: fmt.Sprintf("root %d is not signed by enough of its keys yet", newest.Version()), Remedy: "see who is lacking: edgectl release show " + file}
			}
			return nil, nil, inFile(file, err)
		}
		chain = append(chain, raw)
	}
	return chain, newest, nil
}

// rootsOf reads the roots that a command names; where it names none, those that a bundle carries count.
func rootsOf(b *release.Bundle, file string, named []string) (chain [][]byte, newest *release.Draft, err error) {
	if len(named) > 0 {
		return readRoots(named)
	}
	if len(b.Roots) == 0 {
		return nil, nil, nil
	}
	if newest, err = release.ReadRoot(b.Roots[len(b.Roots)-1]); err != nil {
		return nil, nil, inFile(file, err)
	}
	return b.Roots, newest, nil
}

// signing is a signature that is to be added: made here, or elsewhere.
type signing struct {
	key, public, signature string

	signer crypto.Signer
	by     crypto.PublicKey
	made   []byte
}

// read reads the key; any tells whether there is one.
func (s *signing) read() (any bool, err error) {
	switch {
	case s.key != "" && s.public+s.signature != "", (s.public == "") != (s.signature == ""):
		return false, &api.Error{Code: api.Invalid, Message: "a signature comes from --key, or from --public and --signature together", Remedy: "give one or the other"}
	case s.key != "":
		if s.signer, err = release.ReadKey(s.key); err != nil {
			return false, err
		}
		s.by = s.signer.Public()
		_, err = release.KeyID(s.by)
		return true, inFile(s.key, err)
	case s.public != "":
		if s.by, err = readPublic(s.public); err != nil {
			return false, err
		}
		if _, err = release.KeyID(s.by); err != nil {
			return false, inFile(s.public, err)
		}
		s.made, err = os.ReadFile(s.signature)
		return true, err
	}
	return false, nil
}

// add signs raw; standing is what the keys that count say of it, nil where nobody knows them. A key that does not count is refused.
func (s *signing) add(raw []byte, what, remedy string, standings ...release.Standing) (out []byte, already bool, err error) {
	id, err := release.KeyID(s.by)
	if err != nil {
		return nil, false, err
	}
	known := len(standings) == 0
	for _, st := range standings {
		known = known || st.Knows(id)
		if st.Has(id) {
			return raw, true, nil
		}
	}
	if !known { // check: stranger key
		return nil, false, &api.Error{Code: api.Forbidden, Message: fmt.Sprintf("key %s counts for nothing here: %s", short(id), what), Remedy: remedy}
	}
	if s.signer != nil {
		out, err = release.AddSignature(raw, s.signer)
	} else {
		out, err = release.Attach(raw, s.by, s.made)
	}
	return out, false, err
}

// short is as much of a key's id as a person compares.
func short(id string) string { return id[:min(16, len(id))] }

func (a *app) releaseSignCommand() *cobra.Command {
	var s signing
	var roots []string
	c := &cobra.Command{Use: "sign FILE", Short: "Add a signature to a bundle or a root", Args: cobra.ExactArgs(1),
		Long: `Add a signature to a bundle or a root, and say how many lack. A key that the root does not name is refused.

--root names the roots that count, oldest first: for a bundle those that shall go with it (it may have some in it), for a
root the one before it. A signature that was made elsewhere over what edgectl release payload wrote comes in by --public
and --signature; it is checked.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			signs, err := s.read()
			if err != nil {
				return err
			}
			head, err := beginning(args[0])
			if err != nil {
				return err
			}
			out, notes := cmd.OutOrStdout(), cmd.ErrOrStderr()
			if head == '{' {
				if !signs {
					return &api.Error{Code: api.Invalid, Message: "nothing to sign the root with", Remedy: "give --key, or --public and --signature"}
				}
				return signRoot(out, notes, args[0], &s, roots)
			}
			if !signs && len(roots) == 0 {
				return &api.Error{Code: api.Invalid, Message: "nothing to sign the bundle with, and no root to put into it", Remedy: "give --key, --public and --signature, or --root"}
			}
			return signBundle(out, notes, args[0], &s, signs, roots)
		}}
	f := c.Flags()
	f.StringVar(&s.key, "key", "", "file of the key")
	f.StringVar(&s.public, "public", "", "public key of a signature that was made elsewhere")
	f.StringVar(&s.signature, "signature", "", "that signature, as it came from the token")
	f.StringSliceVar(&roots, "root", nil, "root that goes with the release, oldest first, or the one before a root; may be repeated")
	return c
}

const alreadySigned = "this key has signed it already; nothing is changed"

func signRoot(out, notes io.Writer, file string, s *signing, roots []string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	draft, err := release.ReadRoot(raw)
	if err != nil {
		return inFile(file, err)
	}
	_, old, err := readRoots(roots)
	if err != nil {
		return err
	}
	own, err := draft.Roots(raw)
	if err != nil {
		return inFile(file, err)
	}
	standings, remedy := []release.Standing{own}, "sign with one of its root keys: edgectl release show "+file
	if old != nil {
		if err := follows(draft, old); err != nil {
			return inFile(file, err)
		}
		before, err := old.Roots(raw)
		if err != nil {
			return inFile(file, err)
		}
		standings = append(standings, before)
	} else if draft.Version() > 1 {
		remedy = "for a key of the root before it, name that root: --root FILE"
	}
	signed, already, err := s.add(raw, fmt.Sprintf("root %d does not name it for roots", draft.Version()), remedy, standings...)
	if err != nil {
		return inFile(file, err)
	}
	if already {
		fmt.Fprintln(notes, alreadySigned)
	} else if err := atomicfile.Write(file, signed, 0o644); err != nil {
		return err
	}
	return showRoot(out, signed, old)
}

func follows(root, old *release.Draft) error {
	if root.Version() != old.Version()+1 {
		return &api.Error{Code: api.Invalid, Message: fmt.Sprintf("root %d does not follow root %d", root.Version(), old.Version()), Remedy: fmt.Sprintf("give root %d with --root", root.Version()-1)}
	}
	return nil
}

func signBundle(out, notes io.Writer, file string, s *signing, signs bool, roots []string) error {
	var b *release.Bundle
	var newest *release.Draft
	digest, err := release.ChangeFile(file, func(in *release.Bundle) (err error) {
		b = in
		var chain [][]byte
		if chain, newest, err = rootsOf(b, file, roots); err != nil {
			return err
		}
		b.Roots = chain
		if !signs {
			return nil
		}
		var standings []release.Standing
		what := ""
		if newest == nil {
			fmt.Fprintln(notes, "no root is in the bundle and none is named (--root): whether boxes take this key was not looked at")
		} else {
			st, err := newest.Releases(b.Targets)
			if err != nil {
				return inFile(file, err)
			}
			standings, what = append(standings, st), fmt.Sprintf("root %d does not name it for releases", newest.Version())
		}
		signed, already, err := s.add(b.Targets, what, "sign with a key that the root names for releases; after a change of keys give all roots: --root 1.json --root 2.json", standings...)
		if err != nil {
			return inFile(file, err)
		}
		if b.Targets = signed; already {
			fmt.Fprintln(notes, alreadySigned)
		}
		return nil
	})
	if err != nil {
		return inFile(file, err)
	}
	fmt.Fprintln(out, digest)
	return sayBundle(notes, b, newest)
}

func beginning(file string) (byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := io.ReadFull(f, b); err != nil {
		return 0, &api.Error{Code: api.Invalid, Message: file + " is empty, or no file", Remedy: "give a bundle (update.tbu) or a root (release-root.json)", Err: err}
	}
	return b[0], nil
}

func (a *app) releasePayloadCommand() *cobra.Command {
	return &cobra.Command{Use: "payload FILE OUT", Short: "Write the bytes that a key signs under a bundle or a root", Args: cobra.ExactArgs(2),
		Long: `Write the bytes that a key signs under a bundle or a root: some hundred bytes of JSON, for a key that lies in a token or on
a machine without network. Sign them with Ed25519, or with ECDSA on P-256 and SHA-256, and bring the signature in:

  edgectl release sign --public s2.pub --signature s2.sig FILE`,
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := metadataOf(args[0])
			if err != nil {
				return err
			}
			payload, err := release.Payload(raw)
			if err != nil {
				return inFile(args[0], err)
			}
			return atomicfile.Write(args[1], payload, 0o644)
		}}
}

// metadataOf is what is signed of a file: a root itself, of a bundle its targets file.
func metadataOf(file string) ([]byte, error) {
	head, err := beginning(file)
	if err != nil {
		return nil, err
	}
	if head == '{' {
		return os.ReadFile(file)
	}
	b, err := release.ReadFile(file)
	if err != nil {
		return nil, inFile(file, err)
	}
	return b.Targets, nil
}

func (a *app) releaseShowCommand() *cobra.Command {
	var roots []string
	c := &cobra.Command{Use: "show FILE", Short: "Say what a bundle, a root or a public key is, who signed it, and how many signatures lack", Args: cobra.ExactArgs(1),
		Long: `Say what a bundle, a root or a public key is, who signed it, and how many signatures lack. With --root, the roots that
boxes have, oldest first, it fails where boxes would refuse.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			head, err := beginning(args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch head {
			case '{':
				return showRootFile(out, args[0], roots)
			case '-':
				k, err := readPublic(args[0])
				if err != nil {
					return err
				}
				return inFile(args[0], sayKey(out, k))
			}
			return showBundle(out, args[0], roots, time.Now())
		}}
	c.Flags().StringSliceVar(&roots, "root", nil, "root that boxes have; may be repeated, oldest first")
	return c
}

func showRootFile(out io.Writer, file string, roots []string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	draft, err := release.ReadRoot(raw)
	if err != nil {
		return inFile(file, err)
	}
	_, old, err := readRoots(roots)
	if err != nil {
		return err
	}
	if old != nil {
		if err := follows(draft, old); err != nil {
			return inFile(file, err)
		}
	}
	if err := showRoot(out, raw, old); err != nil || old == nil {
		return err
	}
	own, err1 := draft.Roots(raw)
	before, err2 := old.Roots(raw)
	if err := errors.Join(err1, err2); err != nil {
		return inFile(file, err)
	}
	if own.Lacks()+before.Lacks() > 0 {
		return &api.Error{Code: api.Forbidden, Message: fmt.Sprintf("%s: boxes with root %d do not take it yet", file, old.Version()), Remedy: "have those sign who are lacking"}
	}
	return nil
}

// showRoot says what a root holds, who signed it, and with the one before it, who of that one's keys did.
func showRoot(out io.Writer, raw []byte, old *release.Draft) error {
	draft, err := release.ReadRoot(raw)
	if err != nil {
		return err
	}
	own, err := draft.Roots(raw)
	if err != nil {
		return err
	}
	releases := draft.ReleaseKeys()
	var b bytes.Buffer
	fmt.Fprintf(&b, "root %d, ends %s\n", draft.Version(), draft.Expires().Format(time.DateOnly))
	fmt.Fprintf(&b, "releases need %s\n", ofKeys(releases))
	for _, id := range releases.Keys {
		fmt.Fprintln(&b, "  "+short(id))
	}
	fmt.Fprintf(&b, "roots need %s\n", ofKeys(own))
	sayStanding(&b, own)
	if old != nil {
		before, err := old.Roots(raw)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "boxes with root %d want %s of that one's\n", old.Version(), ofKeys(before))
		sayStanding(&b, before)
	} else if draft.Version() > 1 {
		fmt.Fprintf(&b, "keys of root %d have to sign too: --root says which did\n", draft.Version()-1)
	}
	_, err = out.Write(b.Bytes())
	return err
}

func ofKeys(s release.Standing) string {
	return fmt.Sprintf("%d of %d keys", s.Threshold, len(s.Keys))
}

func sayStanding(out io.Writer, s release.Standing) {
	for _, id := range s.Keys {
		word := "-"
		if s.Has(id) {
			word = "signed"
		}
		fmt.Fprintf(out, "  %s  %s\n", short(id), word)
	}
	switch lacks := s.Lacks(); lacks {
	case 0:
		fmt.Fprintln(out, "  enough signatures")
	case 1:
		fmt.Fprintln(out, "  1 signature is lacking")
	default:
		fmt.Fprintf(out, "  %d signatures are lacking\n", lacks)
	}
}

// sayBundle says who signed a bundle: by its newest root, where one is known.
func sayBundle(out io.Writer, b *release.Bundle, newest *release.Draft) error {
	if newest == nil {
		ids, err := release.Signers(b.Targets)
		if err != nil {
			return err
		}
		for i, id := range ids {
			ids[i] = short(id)
		}
		_, err = fmt.Fprintf(out, "signed by %s; no root is in it: --root tells whether that is enough\n", cmp.Or(strings.Join(ids, ", "), "nobody"))
		return err
	}
	s, err := newest.Releases(b.Targets)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "root %d wants %s for a release\n", newest.Version(), ofKeys(s))
	sayStanding(out, s)
	return nil
}

func showBundle(out io.Writer, file string, roots []string, now time.Time) error {
	b, err := release.ReadFile(file)
	if err != nil {
		return inFile(file, err)
	}
	d, err := release.ParseDescription(b.Description)
	if err != nil {
		return inFile(file, err)
	}
	_, digest, err := b.Manifest()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "version %s for %s (%s), security counter %d\npcr 11  %s\ndigest  %s\ncontent %d bytes, %d to fetch, %d deltas\n", d.Version, d.Profile, d.Arch, d.Counter, cmp.Or(d.PCR11, "unknown"), digest, d.Content.Size, len(b.Plain), len(b.Deltas))
	chain, newest, err := rootsOf(b, file, roots)
	if err != nil {
		return err
	}
	if n := len(b.Roots); n > 0 && newest != nil { // boxes come to know the newer one by the bundle
		if carried, err := release.ReadRoot(b.Roots[n-1]); err == nil && carried.Version() > newest.Version() {
			newest = carried
		}
	}
	if err := sayBundle(out, b, newest); err != nil {
		return inFile(file, err)
	}
	if len(roots) == 0 {
		return nil
	}
	return inFile(file, taken(b, chain, now))
}

// taken asks what a box asks that has the first of these roots, and the time.
func taken(b *release.Bundle, chain [][]byte, now time.Time) error {
	t, err := release.TrustRoot(chain[0])
	if err != nil {
		return err
	}
	_, _, err = t.Verify(append(chain[1:len(chain):len(chain)], b.Roots...), b.Targets, b.Description, now)
	return err
}
