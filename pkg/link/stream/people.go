package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"tributary.dev/tributary/pkg/api"
)

// Query writes a command's arguments as URL parameters, for the REST path
// /api/v1/devices/{name}/{verb} between edgectl and cored.
func (c *Command) Query() url.Values {
	q := url.Values{}
	set := func(k, v string) {
		if v != "" {
			q.Set(k, v)
		}
	}
	flag := func(k string, v bool) {
		if v {
			q.Set(k, "true")
		}
	}
	number := func(k string, v int) {
		if v != 0 {
			q.Set(k, strconv.Itoa(v))
		}
	}
	set("app", c.App)
	set("service", c.Service)
	set("line", c.Line)
	q["argv"] = c.Argv
	flag("tty", c.TTY)
	flag("follow", c.Follow)
	number("tail", c.Tail)
	number("port", int(c.Port))
	number("columns", int(c.Size.Columns))
	number("rows", int(c.Size.Rows))
	if len(c.Argv) == 0 {
		q.Del("argv")
	}
	return q
}

// FromQuery reads what Query wrote and checks it. Unknown parameters are refused,
// but "tenant", which is the server's.
func FromQuery(verb Verb, q url.Values) (Command, error) {
	c := Command{Verb: verb}
	for k, v := range q {
		var err error
		switch k {
		case "app":
			c.App = v[0]
		case "service":
			c.Service = v[0]
		case "argv":
			c.Argv = v
		case "line":
			c.Line = v[0]
		case "tty":
			c.TTY, err = strconv.ParseBool(v[0])
		case "follow":
			c.Follow, err = strconv.ParseBool(v[0])
		case "tail":
			c.Tail, err = strconv.Atoi(v[0])
		case "port":
			c.Port, err = parse16(v[0])
		case "columns":
			c.Size.Columns, err = parse16(v[0])
		case "rows":
			c.Size.Rows, err = parse16(v[0])
		case "tenant":
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			return c, &api.Error{Code: api.Invalid, Field: k, Message: "not understood", Err: err}
		}
	}
	return c, c.Check()
}

func parse16(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}

// Dial opens a person's stream at cored. header carries the bearer token.
func Dial(ctx context.Context, u *url.URL, conf *tls.Config, header http.Header) (*Conn, error) {
	conn, err := Upgrade(ctx, u, conf, header, nil)
	if err != nil {
		return nil, err
	}
	return NewConn(conn, Idle), nil
}

// Accept takes a person's upgrade request over at cored. Open the device's stream
// first, so that its failure can still be answered in HTTP with WriteError.
func Accept(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	conn, err := Hijack(w, r)
	if err != nil {
		return nil, err
	}
	return NewConn(conn, Idle), nil
}

// Sample is one line of top: what the device's containers use now.
type Sample struct {
	// Time is Unix milliseconds by the device's clock.
	Time int64 `json:"time"`
	// Load is the one-minute load average; MemoryBytes and MemoryUsed are the box's.
	Load        float64     `json:"load"`
	MemoryBytes int64       `json:"memoryBytes"`
	MemoryUsed  int64       `json:"memoryUsed"`
	Uses        []SampleUse `json:"uses"`
}

// SampleUse is one service. Rates are over the time since the sample before; the
// first sample of a stream has none.
type SampleUse struct {
	App         string  `json:"app"`
	Service     string  `json:"service"`
	State       string  `json:"state"`
	CPUs        float64 `json:"cpus"` // cores in use
	MemoryBytes uint64  `json:"memoryBytes"`
	RxPerSecond float64 `json:"rxPerSecond"` // bytes
	TxPerSecond float64 `json:"txPerSecond"`
}

// FinishGrace is how long Finish waits for the peer's close by default.
const FinishGrace = 10 * time.Second

func publicError(err error) *api.Error {
	e := &api.Error{Code: api.CodeOf(err), Message: err.Error()}
	var known *api.Error
	if errors.As(err, &known) {
		e = &api.Error{Code: known.Code, Message: known.Message, Field: known.Field, Remedy: known.Remedy}
	}
	return e
}
