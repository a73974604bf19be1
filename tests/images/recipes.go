package main

import (
	"archive/tar"
	_ "embed"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tributary.dev/tributary/tests/images/debimage"
)

// recipe is one program of Debian as an image.
type recipe struct {
	name     string
	packages []string
	config   v1.Config
	// own adds our files to the program's layer.
	own func(debimage.Tree)
	// top makes a last small layer, as an update of content would.
	top func(debimage.Tree)
}

//go:embed nginx.conf
var nginxConf string

var env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// web is nginx answering with its version, a Config's text, and a counter that lives
// in redis.
func web(name, version string) recipe {
	return recipe{
		name:     name,
		packages: []string{"nginx", "libnginx-mod-http-ndk", "libnginx-mod-http-lua", "lua-resty-core", "lua-resty-lrucache"},
		config: v1.Config{
			User: "33:33", Env: env, WorkingDir: "/", Entrypoint: []string{"/usr/sbin/nginx"}, Cmd: []string{"-e", "stderr", "-g", "daemon off;"},
			ExposedPorts: map[string]struct{}{"8080/tcp": {}}, StopSignal: "SIGQUIT",
			Labels: map[string]string{"org.opencontainers.image.title": name, "org.opencontainers.image.version": version},
		},
		own: func(t debimage.Tree) { t.Text("etc/nginx/nginx.conf", nginxConf) },
		top: func(t debimage.Tree) { t.Text("srv/version", version+"\n") },
	}
}

func recipes() []recipe {
	return []recipe{
		web("web", "1"),
		web("web-v2", "2"),
		{
			name:     "cache",
			packages: []string{"redis-server", "redis-tools"},
			config: v1.Config{
				Env: env, WorkingDir: "/data", Entrypoint: []string{"/usr/bin/redis-server"},
				Cmd:          []string{"--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes", "--save", ""},
				ExposedPorts: map[string]struct{}{"6379/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
			},
			own: func(t debimage.Tree) { t.Dir("data", 0o755) },
		},
		{
			name:     "broker",
			packages: []string{"mosquitto", "mosquitto-clients"},
			config: v1.Config{
				User: "33:33", Env: env, WorkingDir: "/", Entrypoint: []string{"/usr/sbin/mosquitto"}, Cmd: []string{"-c", "/etc/mosquitto/tributary.conf"},
				ExposedPorts: map[string]struct{}{"1883/tcp": {}},
			},
			own: func(t debimage.Tree) {
				t.Text("etc/mosquitto/tributary.conf", "listener 1883 0.0.0.0\nallow_anonymous true\npersistence false\nlog_dest stderr\n")
			},
		},
	}
}

// applets of busybox that people want in `edgectl exec`.
const applets = "sh cat ls echo sleep wget nc env id kill ps top head tail grep sed awk cut date hostname mkdir rm mv cp ln chmod touch find sort uniq wc tr dd df du free mount ip ping nslookup vi test true false yes seq od sha256sum"

// skeleton is what every image stands on.
func skeleton(t debimage.Tree) {
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		t.Symlink(link, "usr/"+link)
	}
	for _, dir := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "proc", "sys", "dev", "run", "var/log", "root", "srv"} {
		t.Dir(dir, 0o755)
	}
	t.Dir("tmp", 0o1777)
	t.Dir("var/tmp", 0o1777)
	t.Text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/srv:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	t.Text("etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")
	t.Text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	t.Text("etc/os-release", "PRETTY_NAME=\"Tributary demo (Debian programs)\"\nID=debian\n")
	for name := range strings.FieldsSeq(applets) {
		if _, taken := t["usr/bin/"+name]; !taken {
			t.Symlink("usr/bin/"+name, "busybox")
		}
	}
}

// check finds what would make an image useless before anybody runs it.
func check(name string, t debimage.Tree, conf v1.Config) error {
	program := "usr" + strings.TrimPrefix(conf.Entrypoint[0], "/usr")
	f, ok := t[program]
	if !ok || f.Type != tar.TypeReg && f.Type != tar.TypeSymlink {
		return fmt.Errorf("image %s has no %s", name, conf.Entrypoint[0])
	}
	return nil
}
