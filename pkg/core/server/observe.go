package server

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tributary.dev/tributary/pkg/api"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	streams  prometheus.Gauge
}

func newMetrics(r *prometheus.Registry) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tributary_http_requests_total", Help: "Requests answered, by route, method and status."}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tributary_http_request_seconds", Help: "Time to answer a request, by route; streams are left out.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10}}, []string{"route"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tributary_http_streams", Help: "Watches open now."}),
	}
	r.MustRegister(m.requests, m.seconds, m.streams)
	return m
}

// observe counts and logs each request once, after it, and turns a panic into an
// answer: one request must not end the core.
func (s *Server) observe(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, id := s.cfg.Now(), requestID()
		r = r.WithContext(api.WithOrigin(r.Context(), api.Origin{Source: hostOf(r.RemoteAddr), Request: id}))
		w.Header().Set("X-Request-Id", id)
		rec := &recorder{ResponseWriter: w}
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				s.cfg.Log.Error("a handler panicked", "request", id, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				if rec.code == 0 {
					WriteError(rec, api.Errorf(api.Internal, "something went wrong inside the core"))
				}
			}
			s.account(r, rec, id, s.cfg.Now().Sub(start))
		}()
		h.ServeHTTP(rec, r)
	})
}

func (s *Server) account(r *http.Request, rec *recorder, id string, took time.Duration) {
	route := r.Pattern // set by the mux; bounded, unlike the path
	if route == "" {
		route = "none"
	}
	code := rec.code
	if code == 0 {
		code = http.StatusOK
	}
	s.metrics.requests.WithLabelValues(route, r.Method, strconv.Itoa(code)).Inc()
	if !rec.flushed && !rec.hijacked {
		s.metrics.seconds.WithLabelValues(route).Observe(took.Seconds())
	}
	level := slog.LevelDebug
	if !reads(r) {
		level = slog.LevelInfo
	}
	if code >= 500 {
		level = slog.LevelWarn
	}
	s.cfg.Log.Log(r.Context(), level, "request", "request", id, "method", r.Method, "path", r.URL.Path, "code", code, "bytes", rec.bytes, "ms", took.Milliseconds(), "from", r.RemoteAddr, "who", rec.who)
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

func requestID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	code              int
	bytes             int64
	flushed, hijacked bool
	who               string
}

func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush implements http.Flusher.
func (r *recorder) Flush() {
	r.flushed = true
	_ = http.NewResponseController(r.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker, for streams.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.hijacked = true
	if r.code == 0 {
		r.code = http.StatusSwitchingProtocols
	}
	return http.NewResponseController(r.ResponseWriter).Hijack()
}
