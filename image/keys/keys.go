// Package keys answers: who may say what boots?
//
// A checkout has its own set of keys in .cache/keys, made on first use and never committed: the platform key PK, the
// key exchange key KEK, one or more db keys that sign what boots (the newest signs, all are trusted), and the key that
// signs TPM policies for PCR 11. A project with hardware keeps its real set elsewhere and names that folder.
package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/disk/gpt"
	"tributary.dev/tributary/pkg/efi"
)

const bits = 2048 // what all firmware takes (UEFI 2.10, 32.4.1 names RSA-2048)

// Key signs, and carries its certificate. It signs with PKCS #1 v1.5, which needs no randomness.
type Key struct {
	Name string
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func (k *Key) Certificate() *x509.Certificate { return k.cert }
func (k *Key) Public() crypto.PublicKey       { return k.key.Public() }

// Sign implements crypto.Signer. The randomness is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return rsa.SignPKCS1v15(nil, k.key, opts.HashFunc(), digest)
}

// PublicPEM is the public key as systemd's tools want it.
func (k *Key) PublicPEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(&k.key.PublicKey)
	if err != nil {
		return nil // an RSA key always has a form
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Set is the keys of one owner.
type Set struct {
	PK, PCR *Key
	KEK     *Key   // the newest
	DB      []*Key // by age; the last one signs
	// Next is the db key that will sign after the next rotation: releases bring it to boxes before. Nil when none is prepared.
	Next *Key
	// Revoked are the db keys by which nothing is to start any more.
	Revoked []*Key
}

// Signer is the db key that signs what is built now.
func (s *Set) Signer() *Key { return s.DB[len(s.DB)-1] }

// good are the db keys that a box shall trust.
func (s *Set) good() (out []*Key) {
	for _, k := range s.DB {
		if !slices.Contains(s.Revoked, k) {
			out = append(out, k)
		}
	}
	if s.Next != nil {
		out = append(out, s.Next)
	}
	return out
}

// Certificates are those of the db keys that a box shall trust: not the revoked, and the one that is prepared.
func (s *Set) Certificates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, k := range s.good() {
		out = append(out, k.cert)
	}
	return out
}

// carriedAt is when what releases carry is said to have been signed: firmware compares no times where it appends, and the
// same bytes in each release are none in its delta.
var carriedAt = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// Carried is what a release brings for the firmware of boxes that it finds: a KEK that came after the first, which vouches
// for the rest, the db keys that came after the first, and the revocations. Boxes write what they lack.
func (s *Set) Carried() (out []efi.Append, err error) {
	if s.KEK.Name != firstKEK {
		v, err := s.AppendKEK(carriedAt)
		if err != nil {
			return nil, err
		}
		out = append(out, efi.Append{Name: "append-" + s.KEK.Name, Variable: v.Name, Data: v.Data})
	}
	for _, k := range s.good() {
		if k == s.DB[0] {
			continue // every box was enrolled with it
		}
		v, err := s.Append(carriedAt, k)
		if err != nil {
			return nil, err
		}
		out = append(out, efi.Append{Name: "append-" + k.Name, Variable: v.Name, Data: v.Data})
	}
	for _, k := range s.Revoked {
		v, err := s.Revoke(carriedAt, k)
		if err != nil {
			return nil, err
		}
		out = append(out, efi.Append{Name: "revoke-" + k.Name, Variable: v.Name, Data: v.Data})
	}
	return out, nil
}

// Owner is the GUID that marks this set's entries in the firmware's lists.
func (s *Set) Owner() gpt.GUID {
	sum := sha256.Sum256(s.PK.cert.Raw)
	return gpt.Named("signature owner", string(sum[:]))
}

// Load reads the set in a folder that has one: who names a folder means keys that are there.
func Load(dir string) (*Set, error) {
	for _, name := range []string{"PK", firstKEK, "pcr", "db-1"} {
		if _, err := os.Stat(filepath.Join(dir, name+".crt")); err != nil {
			return nil, fmt.Errorf("%s holds no set of keys: %w", dir, err)
		}
	}
	return LoadOrCreate(dir)
}

// LoadOrCreate reads the set in a folder, and makes what is missing there. Files are NAME.key (0600) and NAME.crt, PEM.
func LoadOrCreate(dir string) (*Set, error) {
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var s Set
	for name, at := range map[string]**Key{"PK": &s.PK, "KEK": &s.KEK, "pcr": &s.PCR} {
		if *at, err = loadOrCreate(dir, name); err != nil {
			return nil, err
		}
	}
	newer, err := numbers(dir, kekPrefix)
	if err != nil {
		return nil, err
	}
	if len(newer) > 0 {
		if s.KEK, err = loadOrCreate(dir, kekPrefix+strconv.Itoa(newer[len(newer)-1])); err != nil {
			return nil, err
		}
	}
	all, err := numbers(dir, "db-")
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		all = []int{1}
	}
	for _, n := range all {
		k, err := loadOrCreate(dir, fmt.Sprintf("db-%d", n))
		if err != nil {
			return nil, err
		}
		s.DB = append(s.DB, k)
		if _, err := os.Stat(filepath.Join(dir, k.Name+revokedMark)); err == nil {
			s.Revoked = append(s.Revoked, k)
		}
	}
	if s.Next, err = load(dir, nextPrefix+s.after()); errors.Is(err, os.ErrNotExist) {
		s.Next, err = nil, nil
	} else if err == nil {
		s.Next.Name = s.after()
	}
	return &s, err
}

// numbers are those of a folder's certificates PREFIX-NUMBER.crt, sorted.
func numbers(dir, prefix string) (out []int, err error) {
	files, err := filepath.Glob(filepath.Join(dir, prefix+"*.crt"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), prefix), ".crt"))
		if err != nil {
			return nil, fmt.Errorf("%s: want %sNUMBER.crt", f, prefix)
		}
		out = append(out, n)
	}
	sort.Ints(out)
	return out, nil
}

// firstKEK is the name of the KEK that boxes were enrolled with at first; those after it are kekPrefix and a number from 2.
const (
	firstKEK  = "KEK"
	kekPrefix = "KEK-"
)

// RotateKEK makes another KEK, which signs what is carried from now on. Releases bring it to the boxes, signed by PK.
func RotateKEK(dir string) (*Set, error) {
	if _, err := LoadOrCreate(dir); err != nil {
		return nil, err
	}
	newer, err := numbers(dir, kekPrefix)
	if err != nil {
		return nil, err
	}
	n := 2
	if len(newer) > 0 {
		n = newer[len(newer)-1] + 1
	}
	if _, err := loadOrCreate(dir, kekPrefix+strconv.Itoa(n)); err != nil {
		return nil, err
	}
	return LoadOrCreate(dir)
}

// Marks in a folder of keys: of the key that is prepared, before its name, and of one that is revoked, behind it.
const (
	nextPrefix  = "next-"
	revokedMark = ".revoked"
)

// after is the name of the db key that follows the newest.
func (s *Set) after() string {
	n, _ := strconv.Atoi(strings.TrimPrefix(s.Signer().Name, "db-")) // a number since it was read
	return fmt.Sprintf("db-%d", n+1)
}

// Prepare makes the next db key. It signs nothing yet; releases from now on bring it to the boxes.
func Prepare(dir string) (*Set, error) {
	s, err := LoadOrCreate(dir)
	if err != nil || s.Next != nil {
		return s, err
	}
	if _, err := loadOrCreate(dir, nextPrefix+s.after()); err != nil {
		return nil, err
	}
	return LoadOrCreate(dir)
}

// ErrNotPrepared: no box knows a key that was never prepared, so none would start what it signs.
var ErrNotPrepared = errors.New("no next db key is prepared: prepare one, bring it to the boxes with a release, and rotate then")

// Rotate has the next db key sign from now on. Boxes learn to trust it by an update signed with an older one, built after
// Prepare; the oldest may go (Revoke) when no box needs it.
func Rotate(dir string) (*Set, error) {
	s, err := LoadOrCreate(dir)
	if err != nil {
		return nil, err
	}
	if s.Next == nil {
		return nil, ErrNotPrepared
	}
	for _, ext := range []string{".key", ".crt"} { // the certificate last: by it a key is found
		if err := os.Rename(filepath.Join(dir, nextPrefix+s.Next.Name+ext), filepath.Join(dir, s.Next.Name+ext)); err != nil {
			return nil, err
		}
	}
	return LoadOrCreate(dir)
}

// MarkRevoked notes that nothing is to start any more by that db key: releases from now on bring the revocation, and boxes write
// it when neither of their slots holds anything that it signed. The key that signs cannot go.
func MarkRevoked(dir, name string) (*Set, error) {
	s, err := LoadOrCreate(dir)
	if err != nil {
		return nil, err
	}
	for _, k := range s.DB[:len(s.DB)-1] {
		if k.Name == name {
			if err := writeFile(filepath.Join(dir, name+revokedMark), nil); err != nil {
				return nil, err
			}
			return LoadOrCreate(dir)
		}
	}
	return nil, fmt.Errorf("%s is no db key that may go: those are older than %s, which signs", name, s.Signer().Name)
}

func loadOrCreate(dir, name string) (*Key, error) {
	k, err := load(dir, name)
	if !errors.Is(err, os.ErrNotExist) {
		return k, err
	}
	if k, err = create(name); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate without its key is refused, a key without certificate is made anew.
	if err := writeFile(filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	return k, writeFile(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.cert.Raw}))
}

// lock keeps two builders in one checkout from making two sets.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func load(dir, name string) (*Key, error) {
	var parts [2][]byte
	for i, ext := range []string{".key", ".crt"} {
		b, err := os.ReadFile(filepath.Join(dir, name+ext))
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s%s in %s is not PEM", name, ext, dir)
		}
		parts[i] = block.Bytes
	}
	key, err := x509.ParsePKCS8PrivateKey(parts[0])
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", name, err)
	}
	cert, err := x509.ParseCertificate(parts[1])
	if err != nil {
		return nil, fmt.Errorf("%s.crt: %w", name, err)
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s.key and %s.crt in %s do not belong together, or are not RSA", name, name, dir)
	}
	return &Key{Name: name, cert: cert, key: private}, nil
}

func create(name string) (*Key, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	// Firmware looks at no dates; a box's clock may stand anywhere.
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Tributary " + strings.TrimPrefix(name, nextPrefix)},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2070, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: name == "PK" || name == "KEK", BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(bytes.Clone(der))
	if err != nil {
		return nil, err
	}
	return &Key{Name: strings.TrimPrefix(name, nextPrefix), cert: cert, key: key}, nil
}
