package main

import (
	"net/http"
	"os"
	"strconv"
	"syscall"

	"tributary.dev/tributary/pkg/api"
)

// console is edged console: the program beside this one takes its place, so that what
// draws on terminals is not in the agent.
func console(args []string) error {
	program := besideMe("edged-console")
	err := syscall.Exec(program, append([]string{program}, args...), os.Environ())
	return &api.Error{Code: api.Unavailable, Message: program + " cannot be started", Remedy: "install it beside edged", Err: err}
}

// localLogs writes the end of a service's log.
func (b *box) localLogs(w http.ResponseWriter, r *http.Request) {
	if b.agent.Load() == nil {
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return
	}
	const most = 10_000
	q := r.URL.Query()
	tail, err := strconv.Atoi(q.Get("tail"))
	if err != nil || tail < 0 || tail > most {
		http.Error(w, "tail is a number of lines up to "+strconv.Itoa(most), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := b.work.Logs(r.Context(), q.Get("app"), q.Get("service"), false, tail, w); err != nil {
		http.Error(w, err.Error(), api.CodeOf(err).HTTPStatus())
	}
}
