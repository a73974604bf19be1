package intake

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"tributary.dev/tributary/pkg/core/database/databasetest"
	"tributary.dev/tributary/pkg/link"
)

// line stands between a ledger and its server. Once armed it cuts where the server's answer
// to the next commit would come through: the commit is done, and nobody is told.
type line struct {
	dir   string // where it listens
	to    string // the server's socket
	armed atomic.Bool
	cuts  atomic.Int32
}

func (l *line) serve(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(l.dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", l.to)
			if err != nil {
				client.Close()
				continue
			}
			var cut atomic.Bool
			wg.Go(func() { l.pass(server, client, &cut); server.(*net.UnixConn).CloseWrite() })
			wg.Go(func() {
				defer client.Close()
				defer server.Close()
				b := make([]byte, 1<<16)
				for {
					n, err := server.Read(b)
					if err != nil || cut.Load() {
						return
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
}

// pass hands on what the client says, and notes that the line is to be cut before a commit's
// answer.
func (l *line) pass(server io.Writer, client io.Reader, cut *atomic.Bool) {
	b := make([]byte, 1<<16)
	for {
		n, err := client.Read(b)
		if err != nil {
			return
		}
		if bytes.Contains(b[:n], []byte("commit\x00")) && l.armed.CompareAndSwap(true, false) {
			cut.Store(true)
			l.cuts.Add(1)
		}
		if _, err := server.Write(b[:n]); err != nil {
			return
		}
	}
}

// A commit of which the server could not tell is found: the devices' positions are read
// again, and what it counted is a repeat. Without that nothing of the device is ever counted
// again.
func TestCommitThatNobodyHeardOf(t *testing.T) {
	dir, err := os.MkdirTemp("", "line-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	place, err := url.Parse(databasetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	q := place.Query()
	l := &line{dir: dir, to: filepath.Join(q.Get("host"), ".s.PGSQL.5432")}
	l.serve(t)
	q.Set("host", dir)
	place.RawQuery = q.Encode()
	s := open(t, config(place.String()))
	defer s.Close()
	b := newBox(t, 1, newKey(t))
	for range 6 {
		b.use(t, 10)
	}
	want(t, s, link.Accepted, 1, b.cut(t, 1, 1, false))
	for i, forget := range []bool{false, true} {
		first := 2 + i
		l.armed.Store(true)
		if _, err := s.AcceptBatches([]link.BatchIn{b.cut(t, first, first, false)}); err == nil || l.cuts.Load() != int32(i+1) {
			t.Fatalf("the commit was told of: %v, %d cuts", err, l.cuts.Load())
		}
		if forget { // what it would be without reading again
			s.stale = false
			if r, err := s.AcceptBatches([]link.BatchIn{b.cut(t, first, first, false)}); err == nil {
				t.Fatalf("counted twice: %+v", r)
			}
		}
		want(t, s, link.Duplicate, uint64(first), b.cut(t, first, first, false))
	}
	want(t, s, link.Accepted, 6, b.cut(t, 4, 6, false))
	if got := cpu(t, s, b.id); got != 60 {
		t.Errorf("counted %d, want 60", got)
	}
}
