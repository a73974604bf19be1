package scenario

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/tests/lab"
	"tributary.dev/tributary/tests/story"
)

// configHotUpdate changes a Config and a Secret: the running container's files change,
// its process stays, and the secret lies in memory alone.
func configHotUpdate(ctx context.Context, t *testing.T, s *story.Story) {
	box := s.Lab.Boxes["field-1"]
	pid, err := box.Task(ctx, "demo", "web")
	must(t, err)
	must(t, answered(ctx, s, "greeting: hello from the core", "secret: 11 characters"))
	must(t, apply(ctx, s, "apiVersion: tributary/v1\nkind: Config\nmetadata: {name: greeting}\nspec: {files: {text: \"good evening\\n\"}}\n"))
	must(t, answered(ctx, s, "greeting: good evening"))
	const pass = "mellon-5d0b1c77-speak-and-enter"
	must(t, apply(ctx, s, "apiVersion: tributary/v1\nkind: Secret\nmetadata: {name: door}\nspec: {data: {pass: "+pass+"}}\n"))
	must(t, answered(ctx, s, fmt.Sprintf("secret: %d characters", len(pass))))
	must(t, same(ctx, box, "demo", "web", pid))

	mount, err := mountOf(pid, "/run/secrets/door")
	must(t, err)
	if !strings.Contains(mount, " - tmpfs ") {
		t.Errorf("the secret is mounted from %q, which is no memory file system", mount)
	}
	// An exit code of 1 is grep's "found nothing".
	if out, err := exec.CommandContext(ctx, "grep", "-rlaF", pass, box.Dir()).Output(); len(out) > 0 {
		t.Errorf("the secret is on the device's disk: %s %v", out, err)
	}
}

// mountOf finds the line of /proc/PID/mountinfo for a mount point.
func mountOf(pid int, point string) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == point {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("nothing is mounted at %s", point)
}

// badUpdate brings updates that never become healthy: one of a service with a host port,
// and one whose check fails. The old instance runs on and keeps the port, the status
// names the fault, and a good version is taken.
func badUpdate(ctx context.Context, t *testing.T, s *story.Story) {
	text, err := os.ReadFile(s.Root + "/tests/demo/app/v2.yaml")
	must(t, err)
	bad := strings.Replace(string(text), `ports: ["8080:8080"]`, `ports: ["8080:8080"]
        command: ["-e", "stderr", "-g", "no_such_directive;"]`, 1)
	cache, err := s.Lab.Boxes["field-1"].Task(ctx, "demo", "cache")
	must(t, err)
	web, err := s.Lab.Boxes["field-1"].Task(ctx, "demo", "web")
	must(t, err)
	must(t, apply(ctx, s, bad))
	failed := func(service, why string) func(api.AppStatus) bool {
		return func(a api.AppStatus) bool {
			return strings.Contains(a.Message, service+": update failed") && strings.Contains(a.Message, why) && a.Rejected != "" && a.Rejected != a.Bundle
		}
	}
	_, err = appOn(ctx, s, "field-1", "demo", "tells that web's update failed", failed("web", "exited with 1"))
	must(t, err)
	must(t, answered(ctx, s, "version 1"))
	must(t, same(ctx, s.Lab.Boxes["field-1"], "demo", "web", web))
	must(t, happened(ctx, s, "field-1", "app.update-failed", func(e event) bool {
		return e.Event.Name == "app.update-failed" && e.Event.Subject == "demo/web"
	}))
	must(t, s.Apply(ctx, "v2.yaml"))
	must(t, s.AnswerEverywhere(ctx, "version 2"))
	must(t, s.RunningEverywhere(ctx))
	must(t, same(ctx, s.Lab.Boxes["field-1"], "demo", "cache", cache))

	s.Say("a good version is taken after one that failed")

	// Side by side: the old instance never stops, whatever check the new one brings.
	const service = `
services:
  shell:
    image: cache
    entrypoint: [/bin/busybox, sleep, "100000"]
    environment: {EDITION: %q}
    stop_grace_period: 1s
    healthcheck: {test: [CMD, /bin/busybox, %q], interval: 1s, timeout: 1s, retries: 2}
`
	work(ctx, t, s, "tools", fmt.Sprintf(service, "1", "true"))
	must(t, running(ctx, s, "field-2", "tools"))
	box := s.Lab.Boxes["field-2"]
	pid, err := box.Task(ctx, "tools", "shell")
	must(t, err)
	must(t, apply(ctx, s, appText("tools", fmt.Sprintf(service, "2", "false"))))
	_, err = appOn(ctx, s, "field-2", "tools", "tells that shell's update failed", failed("shell", "health check fails"))
	must(t, err)
	s.Say("an update beside the old one failed")
	// The old one must not be judged by the check of the new: it would be restarted for ever.
	from, err := events(ctx, s, "field-2")
	must(t, err)
	_, last, err := box.Recorded(ctx)
	must(t, err)
	_, err = s.Grown(ctx, "field-2", last+2)
	must(t, err)
	must(t, same(ctx, box, "tools", "shell", pid))
	to, err := events(ctx, s, "field-2")
	must(t, err)
	if n := len(to) - len(from); n > 4 {
		t.Errorf("%d events within two records after the update failed: %+v", n, to[:n])
	}
	must(t, apply(ctx, s, appText("tools", fmt.Sprintf(service, "3", "true"))))
	must(t, running(ctx, s, "field-2", "tools"))
	must(t, lab.Until(ctx, "edition 3 runs", s.Wait, func(ctx context.Context) error {
		pid, err := box.Task(ctx, "tools", "shell")
		if err != nil {
			return err
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && !strings.Contains(string(env), "EDITION=3") {
			err = fmt.Errorf("its environment is %q", env)
		}
		return err
	}))
}
