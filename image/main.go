// Image answers: what is typed to make a system for boxes?
//
//	go run ./image build --profile generic-amd64    all forms of a system, in build/generic-amd64
//	go run ./image keys                             the signing keys of this checkout
//	go run ./image lock                             choose package versions anew
//	go run ./image training                         the image in which the core trains models, in build/training
//	go run ./image verify build/generic-amd64       read the results again
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/hwprofiles"
	"tributary.dev/tributary/image/build"
	"tributary.dev/tributary/image/deb"
	"tributary.dev/tributary/image/keys"
	"tributary.dev/tributary/image/training"
	"tributary.dev/tributary/pkg/flagvalue"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
	if err := root(log).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func root(log *slog.Logger) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "make systems for boxes", SilenceUsage: true, SilenceErrors: true}
	c.SetFlagErrorFunc(flagvalue.Explain)
	checkout := c.PersistentFlags().String("root", ".", "the checkout")
	c.AddCommand(buildCommand(log, checkout), keysCommand(checkout), lockCommand(log, checkout), trainingCommand(log, checkout), verifyCommand(checkout))
	return c
}

func buildCommand(log *slog.Logger, checkout *string) *cobra.Command {
	var profile, arch, settings, when string
	var afresh bool
	c := build.Config{Log: log}
	cmd := &cobra.Command{Use: "build", Short: "build raw disk, installer, netboot image", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVar(&profile, "profile", "", "hardware profile: "+strings.Join(hwprofiles.Names(), ", "))
	f.StringVar(&arch, "arch", "", "the profile's variant for this architecture (amd64, arm64)")
	f.StringVar(&c.Out, "out", "", "folder for the results (build/PROFILE)")
	f.StringVar(&c.Version, "version", "", "version of the release (what git describes)")
	f.Uint64Var(&c.Counter, "counter", 1, "security floor, 1 to 64: a box that has confirmed it takes no release with a lower one")
	f.StringVar(&when, "time", "", "time of the release, seconds since 1970 (the last commit's)")
	f.StringVar(&c.Preload, "preload", "", "folder of apps, certificates and settings that the image carries")
	f.StringVar(&settings, "settings", "", "tributary.yaml to lay on CONFIG")
	f.StringVar(&c.Keys, "keys", "", "folder of the signing keys (.cache/keys); keys --dir FOLDER --make makes a set")
	f.StringVar(&c.Lock, "lock", "", "file of package versions (rootfs/packages.lock)")
	f.StringSliceVar(&c.Cmdline, "cmdline", nil, "a further word for the kernel; may be repeated")
	f.BoolVar(&c.Bundle, "bundle", false, "the update bundle also in a quick build")
	f.StringSliceVar(&c.Previous, "previous", nil, "update.tbu of a release that boxes run now; may be repeated")
	f.BoolVar(&c.Quick, "quick", false, "the raw disk alone, for tests")
	f.BoolVar(&afresh, "afresh", false, "where the mirror has dropped a locked version, lock what it has now in a file of this build's own")
	_ = cmd.MarkFlagRequired("profile")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		c.Root = *checkout
		if c.Profile, err = load(profile, arch); err != nil {
			return err
		}
		for _, word := range c.Cmdline {
			if err := hwprofiles.CheckArgument(word); err != nil {
				return fmt.Errorf("--cmdline %s: %w", word, err)
			}
		}
		if c.Keys != "" {
			if _, err := keys.Load(c.Keys); err != nil {
				return fmt.Errorf("--keys: %w; name another folder, or make a set there: go run ./image keys --dir %s --make", err, c.Keys)
			}
		}
		if c.Out == "" {
			c.Out = filepath.Join(c.Root, "build", c.Profile.Name)
		}
		if c.Version == "" {
			if c.Version, err = git(cmd.Context(), c.Root, "describe", "--tags", "--always", "--dirty"); err != nil {
				return fmt.Errorf("no version: give --version: %w", err)
			}
		}
		if c.Time, err = releaseTime(cmd.Context(), c.Root, when); err != nil {
			return err
		}
		if settings != "" {
			if c.Settings, err = os.ReadFile(settings); err != nil {
				return err
			}
		}
		start := time.Now()
		m, err := build.Build(cmd.Context(), c)
		if afresh && errors.Is(err, deb.ErrDropped) {
			log.Warn("locking versions afresh", "err", err)
			m, err = buildAfresh(cmd.Context(), c)
		}
		if err != nil {
			return err
		}
		report(cmd, c, m, time.Since(start))
		return nil
	}
	return cmd
}

// buildAfresh builds with the versions that the mirror has now, and leaves the committed lock alone.
func buildAfresh(ctx context.Context, c build.Config) (*build.Manifest, error) {
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return nil, err
	}
	c.Lock = filepath.Join(c.Out, "packages.lock")
	if _, err := deb.Relock(ctx, c.Root, c.Lock, c.Log); err != nil {
		return nil, err
	}
	return build.Build(ctx, c)
}

func report(cmd *cobra.Command, c build.Config, m *build.Manifest, took time.Duration) {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s %s for %s, kernel %s, in %.0f s: %s\n", m.Profile, m.Version, m.Arch, m.Kernel, took.Seconds(), c.Out)
	for _, name := range []string{build.RawFile, build.ZstdFile, build.RootFile, build.UKIFile, build.InstallerFile, build.NetbootFile} {
		if o, ok := m.Files[name]; ok {
			fmt.Fprintf(out, "  %-16s %7.1f MB  %s\n", name, float64(o.Size)/1e6, o.SHA256[:16])
		}
	}
	fmt.Fprintf(out, "  root hash %s\n  PCR 11    %s\n", m.RootHash, m.PCR11)
}

func load(profile, arch string) (hwprofiles.Profile, error) {
	p, err := hwprofiles.Load(profile)
	if err != nil || arch == "" || p.Arch == arch {
		return p, err
	}
	name := strings.TrimSuffix(strings.TrimSuffix(profile, "-amd64"), "-arm64") + "-" + arch
	p, err = hwprofiles.Load(name)
	if err == nil && p.Arch != arch {
		err = fmt.Errorf("profile %s is for %s", name, p.Arch)
	}
	return p, err
}

func releaseTime(ctx context.Context, root, when string) (time.Time, error) {
	if when == "" {
		when = os.Getenv("SOURCE_DATE_EPOCH")
	}
	if when == "" {
		var err error
		if when, err = git(ctx, root, "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, fmt.Errorf("no time: give --time: %w", err)
		}
	}
	n, err := strconv.ParseInt(when, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %q: want seconds since 1970", when)
	}
	return time.Unix(n, 0).UTC(), nil
}

func git(ctx context.Context, root string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "git", append([]string{"-C", root}, args...)...).Output()
	return strings.TrimSpace(string(out)), err
}

// showKeys lists each key with what it does now, its certificate's SHA-256 and last day.
func showKeys(w io.Writer, s *keys.Set) {
	row := func(k *keys.Key, does string) {
		sum := sha256.Sum256(k.Certificate().Raw)
		fmt.Fprintf(w, "%-6s %-38s %s  until %s\n", k.Name, does, hex.EncodeToString(sum[:8]), k.Certificate().NotAfter.UTC().Format(time.DateOnly))
	}
	row(s.PK, "vouches for KEK")
	row(s.KEK, "vouches for db and dbx")
	row(s.PCR, "signs policies of TPMs")
	for _, k := range s.DB {
		switch {
		case k == s.Signer():
			row(k, "signs what starts")
		case slices.Contains(s.Revoked, k):
			row(k, "revoked: nothing starts by it")
		default:
			row(k, "is still trusted")
		}
	}
	if s.Next != nil {
		row(s.Next, "is prepared: release, then --rotate")
	}
}

func keysCommand(checkout *string) *cobra.Command {
	var dir, export, revoke string
	var prepare, rotate, rotateKEK, create bool
	cmd := &cobra.Command{Use: "keys", Short: "show, make or rotate the signing keys", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the keys (.cache/keys)")
	cmd.Flags().BoolVar(&create, "make", false, "make a set in the folder that --dir names")
	cmd.Flags().BoolVar(&prepare, "prepare", false, "make the next db key: releases bring it to the boxes, and --rotate has it sign")
	cmd.Flags().BoolVar(&rotate, "rotate", false, "have the next db key sign from now on")
	cmd.Flags().BoolVar(&rotateKEK, "rotate-kek", false, "make another KEK, which vouches for db keys from now on: releases bring it to the boxes, signed by PK")
	cmd.Flags().StringVar(&export, "export", "", "write NAME.auth there, for a firmware's own key menu, and append-KEY.auth for boxes in the field")
	cmd.Flags().StringVar(&revoke, "revoke", "", "a db key by which nothing is to start any more: releases bring that to the boxes; with --export, write revoke-KEY.auth")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dir == "" {
			dir = filepath.Join(*checkout, ".cache", "keys")
		} else if _, err := keys.Load(dir); err != nil && !create {
			return fmt.Errorf("%w; name another folder, or make a set there with --make", err)
		}
		get := keys.LoadOrCreate
		switch {
		case prepare:
			get = keys.Prepare
		case rotate:
			get = keys.Rotate
		case rotateKEK:
			get = keys.RotateKEK
		case revoke != "":
			get = func(dir string) (*keys.Set, error) { return keys.MarkRevoked(dir, revoke) }
		}
		s, err := get(dir)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "owner %s\n", s.Owner())
		showKeys(cmd.OutOrStdout(), s)
		if export == "" {
			return nil
		}
		vars, err := s.Enrolment(time.Now(), nil, nil)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(export, 0o755); err != nil {
			return err
		}
		files := map[string]keys.Variable{}
		for _, v := range vars {
			files[v.Name] = v
		}
		carried, err := s.Carried()
		if err != nil {
			return err
		}
		for _, a := range carried {
			files[a.Name] = keys.Variable{Data: a.Data}
		}
		for name, v := range files {
			if err := os.WriteFile(filepath.Join(export, name+".auth"), v.Data, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func lockCommand(log *slog.Logger, checkout *string) *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "lock", Short: "choose package versions anew from this machine's mirror", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&out, "out", "", "file to write (rootfs/packages.lock)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out == "" {
			out = filepath.Join(*checkout, "rootfs", "packages.lock")
		}
		_, err := deb.Relock(cmd.Context(), *checkout, out, log)
		return err
	}
	return cmd
}

func trainingCommand(log *slog.Logger, checkout *string) *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "training", Short: "make the image in which the core trains models", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&out, "out", "", "folder that becomes an OCI image layout (build/training)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out == "" {
			out = filepath.Join(*checkout, "build", "training")
		}
		lock, err := deb.ReadLock(filepath.Join(*checkout, "rootfs", "packages.lock"))
		if err != nil {
			return err
		}
		list, err := lock.Packages("amd64", training.Set)
		if err != nil {
			return err
		}
		cache := &deb.Cache{Dir: filepath.Join(*checkout, ".cache", "debs"), Log: log}
		find := func() (deb.Mirror, error) { return deb.MachineMirror(os.DirFS("/")) }
		if err := cache.Fetch(cmd.Context(), list, find); err != nil {
			return err
		}
		if err := os.RemoveAll(out); err != nil {
			return err
		}
		digest, err := training.Build(cmd.Context(), training.Config{Cache: cache, Packages: list, Out: out, Work: filepath.Join(*checkout, ".cache"), Log: log})
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), digest)
		return nil
	}
	return cmd
}

func verifyCommand(checkout *string) *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: "verify DIR", Short: "compare all that the results of a build say of each other", Args: cobra.ExactArgs(1)}
	cmd.Flags().StringVar(&dir, "keys", "", "folder of the keys (.cache/keys)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dir == "" {
			dir = filepath.Join(*checkout, ".cache", "keys")
		}
		s, err := keys.LoadOrCreate(dir)
		if err != nil {
			return err
		}
		m, err := build.Verify(args[0], s.Certificates()...)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s for %s: whole, signed by us\n", m.Profile, m.Version, m.Arch)
		return nil
	}
	return cmd
}
