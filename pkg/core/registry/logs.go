package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// divertLogs sends what distribution says to log: its errors as warnings (clients
// asking for what is not there are at debug level), the rest not at all.
func divertLogs(log *slog.Logger) {
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.ErrorLevel)
	hooks := logrus.LevelHooks{}
	hooks.Add(diverter{log})
	std.ReplaceHooks(hooks)
}

type diverter struct{ log *slog.Logger }

func (diverter) Levels() []logrus.Level { return logrus.AllLevels }

func (d diverter) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if _, client := e.Data["err.code"]; client {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{}
	for _, key := range []string{"vars.name", "vars.reference", "vars.digest", "err.code", "err.detail"} {
		if v, ok := e.Data[key]; ok {
			attrs = append(attrs, slog.String(key, fmt.Sprint(v)))
		}
	}
	d.log.LogAttrs(context.Background(), level, "registry: "+e.Message, attrs...)
	return nil
}
