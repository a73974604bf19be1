// Command inferd answers: what do the models of this box say?
//
// It serves the models below a folder on a unix socket, by the Open Inference Protocol.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"tributary.dev/tributary/pkg/edge/infer"
	"tributary.dev/tributary/pkg/edge/infer/ort"
)

type options struct {
	library, models, socket, manage string
	threads                         int
}

func main() {
	var o options
	flag.StringVar(&o.library, "library", "/usr/lib/libonnxruntime.so.1", "ONNX Runtime's shared library")
	flag.StringVar(&o.models, "models", "/var/lib/inferd", "folder with a folder for each model, and in it one for each version")
	flag.StringVar(&o.socket, "socket", "/run/inferd/infer.sock", "unix socket at which apps ask")
	flag.StringVar(&o.manage, "manage", "", "unix socket at which versions are activated; empty: none")
	flag.IntVar(&o.threads, "threads", 1, "processors for one question; 0: all")
	must := flag.Bool("confined", false, "do not run where the kernel cannot confine it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := confine([]string{o.library}, o.folders())
	if errors.Is(err, errUnconfined) && !*must {
		log.Warn(err.Error())
		err = nil
	}
	if err == nil {
		err = run(ctx, o, log)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inferd:", err)
		os.Exit(1)
	}
}

// folders are those that inferd writes to.
func (o options) folders() []string {
	out := []string{o.models, filepath.Dir(o.socket)}
	if o.manage != "" {
		out = append(out, filepath.Dir(o.manage))
	}
	return out
}

func run(ctx context.Context, o options, log *slog.Logger) error {
	engine, err := ort.Open(o.library, o.threads)
	if err != nil {
		return err
	}
	list, err := os.ReadDir(o.models)
	if err != nil {
		return err
	}
	models := map[string]*infer.Model{}
	for _, d := range list {
		if !d.IsDir() {
			continue
		}
		m, err := infer.OpenModel(engine, filepath.Join(o.models, d.Name()), log)
		if err != nil {
			log.Error("a model cannot be served", "model", d.Name(), "err", err)
			continue // the others can
		}
		defer m.Close()
		models[d.Name()] = m
	}
	failed := make(chan error, 2)
	for path, handler := range map[string]http.Handler{o.socket: infer.Handler(models, false), o.manage: infer.Handler(models, true)} {
		if path == "" {
			continue
		}
		stop, err := serve(path, handler, failed)
		if err != nil {
			return err
		}
		defer stop()
	}
	log.Info("serving", "models", len(models), "socket", o.socket)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// serve answers at a socket, which takes the place of one that a killed process left.
func serve(path string, handler http.Handler, failed chan<- error) (stop func(), err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close() // who still asks is cut off
		}
	}, nil
}
