// Package training answers: does the core really train a model in containers, and go on when a rank is killed?
//
// The tests have a containerd of their own. TestContainer runs a stand-in of PyTorch's launcher, and shows what a
// job may do and what not; TestTorch (make training) runs the trainer's own image with PyTorch.
package training

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/train"
	"tributary.dev/tributary/pkg/edge/workload/workloadtest"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "python3" {
		os.Exit(standIn(os.Args[1:]))
	}
	os.Exit(workloadtest.Isolate(m.Run))
}

// shelf is a registry in memory, or a folder in OCI's layout.
type shelf struct {
	blobs map[string][]byte
	types map[string]string
	dir   string
	tags  map[string]string
}

func newShelf() *shelf {
	return &shelf{blobs: map[string][]byte{}, types: map[string]string{}, tags: map[string]string{}}
}

func (s *shelf) Open(_ context.Context, _, dgst string) (io.ReadCloser, int64, string, error) {
	if b, ok := s.blobs[dgst]; ok {
		return io.NopCloser(bytes.NewReader(b)), int64(len(b)), s.types[dgst], nil
	}
	f, err := os.Open(filepath.Join(s.dir, "blobs", "sha256", strings.TrimPrefix(dgst, "sha256:")))
	if err != nil {
		return nil, 0, "", &api.Error{Code: api.NotFound, Message: "there is no " + dgst}
	}
	info, err := f.Stat()
	return f, info.Size(), s.types[dgst], err
}

func (s *shelf) ResolvePinned(_ context.Context, ref string) (string, int64, error) {
	repo, _, _ := strings.Cut(ref, ":")
	d, ok := s.tags[ref]
	if !ok {
		return "", 0, &api.Error{Code: api.NotFound, Message: "the registry has no " + ref}
	}
	return repo + "@" + d, 0, nil
}

func (s *shelf) put(mediaType string, b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	s.blobs[d.String()], s.types[d.String()] = b, mediaType
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// data puts a data set there, as `oras push` does.
func (s *shelf) data(t *testing.T, ref, name string, content []byte) {
	t.Helper()
	layer := s.put("text/csv", content)
	layer.Annotations = map[string]string{ocispec.AnnotationTitle: name}
	raw, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: s.put(ocispec.MediaTypeEmptyJSON, []byte("{}")), Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	s.tags[ref] = s.put(ocispec.MediaTypeImageManifest, raw).Digest.String()
}

// image puts an image there whose python3 is this very program.
func (s *shelf) image(t *testing.T, ref string) v1.Image {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"usr/", "usr/bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "job/", "data/", "work/"} {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755})
	}
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/python3", Mode: 0o755, Size: int64(len(self))})
	_, _ = w.Write(self)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg.OS, cfg.Architecture, cfg.Config.Env = "linux", "amd64", []string{"PATH=/usr/bin"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	s.dir = t.TempDir()
	s.add(t, ref, img)
	return img
}

func (s *shelf) add(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	path, err := layout.Write(s.dir, empty.Index)
	if err == nil {
		err = path.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.known(t, ref, img)
}

func (s *shelf) known(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	mt, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	s.tags[ref], s.types[d.String()] = d.String(), string(mt)
}

// book keeps jobs in memory.
type book struct {
	mu   sync.Mutex
	jobs map[string]*api.Object
}

func (b *book) Jobs(context.Context) (out []*api.Object, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, o := range b.jobs {
		c := *o
		out = append(out, &c)
	}
	return out, nil
}

func (b *book) PutStatus(_ context.Context, key api.Key, status any) error {
	raw, err := json.Marshal(status)
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.jobs[key.Name]; o != nil {
		o.Status = raw
	}
	return err
}

func (b *book) write(name string, spec api.TrainingJobSpec) {
	raw, _ := json.Marshal(spec) // a struct of ours
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.jobs[name]; o != nil {
		o.Spec = raw
		return
	}
	at := time.Now()
	b.jobs[name] = &api.Object{Kind: api.KindTrainingJob, Metadata: api.Meta{Tenant: "acme", Name: name, UID: "uid-" + name, Created: &at}, Spec: raw}
}

func (b *book) status(name string) (s api.TrainingJobStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.jobs[name]; o != nil && o.Status != nil {
		_ = json.Unmarshal(o.Status, &s) // written by PutStatus
	}
	return s
}

// place is a containerd, a shelf, a book and a loop over them.
type place struct {
	*shelf
	*book
	t      *testing.T
	daemon *workloadtest.Daemon
	local  *train.Local
	kept   chan train.Result
	poke   chan struct{}
	dir    string // of the jobs
	stop   func()
}

func newPlace(t *testing.T, s *shelf) *place {
	t.Helper()
	if why := workloadtest.Missing(); why != "" {
		t.Skip(why)
	}
	d, err := workloadtest.NewDaemon(filepath.Join(t.TempDir(), "containerd"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Kill)
	p := &place{shelf: s, book: &book{jobs: map[string]*api.Object{}}, t: t, daemon: d, kept: make(chan train.Result, 10), poke: make(chan struct{}, 1), dir: filepath.Join(t.TempDir(), "jobs")}
	p.start()
	return p
}

// start is a core that begins to look after the jobs; stop ends it, and leaves them running.
func (p *place) start() {
	p.t.Helper()
	log := slog.New(slog.NewTextHandler(testLog{p.t}, nil))
	local, err := train.NewLocal(train.LocalConfig{Socket: p.daemon.Socket, Dir: p.dir, Snapshotter: "native", Capacity: train.Capacity{CPUs: 2, MemoryBytes: 6 << 30}, Images: p.shelf, Now: time.Now, Log: log})
	if err != nil {
		p.t.Fatal(err)
	}
	p.local = local
	loop := train.New(train.Config{Store: p.book, Drivers: map[string]train.Driver{"local": local}, Artifacts: p.shelf, Changed: p.poke, Now: time.Now, Log: log,
		Keep: func(_ context.Context, o train.Order, r train.Result) (string, error) {
			p.kept <- r
			return o.Tenant + "/" + o.Spec.Model + "@" + digest.FromBytes(r["model.onnx"]).String(), nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			p.t.Error(err)
		}
		if err := local.Close(); err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(p.stop)
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// apply writes a job and wakes the loop.
func (p *place) apply(name string, spec api.TrainingJobSpec) {
	p.write(name, spec)
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

func (p *place) until(name, what string, limit time.Duration, ok func(api.TrainingJobStatus) bool) api.TrainingJobStatus {
	p.t.Helper()
	var s api.TrainingJobStatus
	eventually(p.t, limit, what, func() error {
		if s = p.status(name); ok(s) {
			return nil
		}
		if s.Final() {
			logs, _ := p.local.Logs(p.t.Context(), "uid-"+name, 4000)
			p.t.Fatalf("%s: %s is over: %+v\n%s", what, name, s, logs)
		}
		return fmt.Errorf("it is %+v", s)
	})
	return s
}

// eventually waits, as long as it is told, until look has nothing to say.
func eventually(t *testing.T, limit time.Duration, what string, look func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; <-tick.C {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s in vain until %s: %v", limit, what, err)
		}
	}
}

func phase(want string) func(api.TrainingJobStatus) bool {
	return func(s api.TrainingJobStatus) bool { return s.Phase == want }
}

// standIn does what PyTorch's launcher and a trainer do, with what a container lets it do.
func standIn(args []string) int {
	var job struct {
		Parameters map[string]string `json:"parameters"`
	}
	raw, err := os.ReadFile("/job/job.json")
	if err == nil {
		err = json.Unmarshal(raw, &job)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ranks by", strings.Join(args, " "))
	steps, _ := strconv.Atoi(job.Parameters["steps"])
	f, err := os.OpenFile("/work/progress.jsonl", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	before, rerr := os.ReadFile("/work/checkpoint.pt")
	step, _ := strconv.Atoi(string(before))
	fmt.Fprintf(f, `{"step":%d,"steps":%d,"resumed":%t}`+"\n", step, steps, rerr == nil)
	for step < steps {
		time.Sleep(20 * time.Millisecond) // the work of a step
		step++
		_ = os.WriteFile("/work/checkpoint.pt", []byte(strconv.Itoa(step)), 0o644)
		fmt.Fprintf(f, `{"step":%d,"steps":%d,"loss":%g}`+"\n", step, steps, 1/float64(step))
		if _, err := os.Stat("/work/suspend"); err == nil {
			fmt.Fprintln(f, `{"ended":"suspended"}`)
			return 0
		}
		if job.Parameters["fail"] == "yes" && step == steps/2 {
			return 7
		}
	}
	_ = os.MkdirAll("/work/result", 0o755)
	for name, b := range map[string][]byte{"model.onnx": []byte("a model"), "metrics.json": []byte(`{"heldBackLoss":0.25,"kpis":["a"]}`), "seen.json": seen()} {
		if err := os.WriteFile("/work/result/"+name, b, 0o644); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Fprintln(f, `{"ended":"done"}`)
	return 0
}

// seen tells what the job can see and do.
func seen() []byte {
	out := map[string]string{"uid": strconv.Itoa(os.Getuid()), "gid": strconv.Itoa(os.Getgid())}
	if err := os.WriteFile("/etc/x", nil, 0o644); err != nil {
		out["root"] = "read-only"
	}
	if err := os.WriteFile("/data/x", nil, 0o644); err != nil {
		out["data"] = "read-only"
	}
	kpis, _ := os.ReadFile("/data/kpis.csv")
	out["kpis"] = string(kpis)
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		out["links"] += l.Name() + " "
	}
	status, _ := os.ReadFile("/proc/self/status")
	for l := range strings.Lines(string(status)) {
		if name, v, _ := strings.Cut(l, ":"); strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" || name == "Seccomp" {
			out[name] = strings.TrimSpace(v)
		}
	}
	b, _ := json.Marshal(out) // of texts
	return b
}

// TestContainer: a job runs in a container that may nothing but train; it is suspended and goes on from its checkpoint,
// also under another core; it is cancelled; and one that breaks off is started again as often as it may be.
func TestContainer(t *testing.T) {
	s := newShelf()
	p := newPlace(t, s)
	s.image(t, "platform/trainer:latest")
	s.data(t, "acme/kpis:1", "kpis.csv", []byte("device,time,cpu\n"))
	job := func(steps int) api.TrainingJobSpec {
		return api.TrainingJobSpec{Trainer: "autoencoder", Data: "kpis:1", Parameters: map[string]string{"steps": strconv.Itoa(steps)}}
	}
	p.apply("a", job(30))
	st := p.until("a", "the job succeeds", time.Minute, phase(api.TrainingSucceeded))
	if st.Step != 30 || st.Metrics["heldBackLoss"] != 0.25 || !strings.HasPrefix(st.Model, "acme/a@sha256:") || st.RanMillis < 600 || st.Ended == nil || !strings.HasPrefix(st.Data, "acme/kpis@sha256:") {
		t.Errorf("its status: %+v", st)
	}
	var can map[string]string
	if err := json.Unmarshal((<-p.kept)["seen.json"], &can); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"uid": "64170", "gid": "64170", "root": "read-only", "data": "read-only", "kpis": "device,time,cpu\n", "links": "lo ", "NoNewPrivs": "1", "Seccomp": "2"}
	for name, v := range want {
		if can[name] != v {
			t.Errorf("%s in the container is %q, not %q", name, can[name], v)
		}
	}
	for name, v := range can {
		if strings.HasPrefix(name, "Cap") && v != "0000000000000000" {
			t.Errorf("the job has capabilities: %s %s", name, v)
		}
	}

	p.apply("b", job(400))
	p.until("b", "it trains", time.Minute, func(s api.TrainingJobStatus) bool { return s.Step > 3 && s.Estimate != nil })
	spec := job(400)
	spec.Suspend = true
	p.apply("b", spec)
	st = p.until("b", "it is suspended", time.Minute, func(s api.TrainingJobStatus) bool { return s.Phase == api.TrainingSuspended && s.RanMillis > 0 })
	at := st.Step
	p.apply("b", job(400))
	p.until("b", "it goes on", time.Minute, func(s api.TrainingJobStatus) bool { return s.Phase == api.TrainingRunning && s.Step > at })
	p.stop() // the core goes, the job goes on
	p.start()
	if st = p.until("b", "it succeeds under another core", time.Minute, phase(api.TrainingSucceeded)); st.Restarts != 0 || st.Step != 400 {
		t.Errorf("its status: %+v", st)
	}

	p.apply("c", job(100_000))
	p.until("c", "it trains", time.Minute, func(s api.TrainingJobStatus) bool { return s.Step > 3 })
	spec = job(100_000)
	spec.Cancel = true
	p.apply("c", spec)
	p.until("c", "it is cancelled", time.Minute, phase(api.TrainingCancelled))

	spec = job(40)
	spec.Parameters["fail"], spec.MaxRestarts = "yes", 1
	p.apply("d", spec)
	if st = p.until("d", "it succeeds after it broke off", time.Minute, phase(api.TrainingSucceeded)); st.Restarts != 1 {
		t.Errorf("its status: %+v", st)
	}
	p.swept()
}

// swept waits until nothing is left of jobs that are over.
func (p *place) swept() {
	p.t.Helper()
	eventually(p.t, 30*time.Second, "nothing is left of jobs that are over", func() error {
		if left, err := p.local.Jobs(p.t.Context()); err != nil || len(left) > 0 {
			return fmt.Errorf("left are %v, %w", left, err)
		}
		return nil
	})
}

// TestTorch trains the autoencoder with PyTorch on KPIs of three devices in two ranks; one rank is killed on the way,
// and the training is suspended once.
func TestTorch(t *testing.T) {
	dir := os.Getenv("TRIBUTARY_TRAINING")
	if dir == "" {
		t.Skip("needs the trainer's image: make training")
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 1 {
		t.Fatal(err, m)
	}
	img, err := idx.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	s := newShelf()
	s.dir = dir
	s.known(t, "platform/trainer:latest", img)
	s.data(t, "acme/kpis:1", "kpis.csv", kpis())
	p := newPlace(t, s)
	spec := api.TrainingJobSpec{Trainer: "autoencoder", Data: "kpis:1", Ranks: 2, Resources: api.TrainingResources{MemoryBytes: 2 << 30},
		Parameters: map[string]string{"steps": "3000", "checkpointEvery": "10", "window": "4"}}
	p.apply("kpis", spec)
	st := p.until("kpis", "two ranks train", 5*time.Minute, func(s api.TrainingJobStatus) bool { return s.Step >= 20 })
	t.Logf("first steps after %s: %+v", time.Since(*st.Started).Round(time.Second), st)
	killRank(t)
	killed := p.status("kpis").Step
	eventually(t, 3*time.Minute, "the launcher starts the ranks again", func() error {
		run, err := p.local.Observe(t.Context(), "uid-kpis")
		if err != nil || run.Restarts != 1 || run.First == 0 || run.Step <= killed {
			return fmt.Errorf("it is %+v, %w", run, err)
		}
		return nil
	})
	spec.Suspend = true
	p.apply("kpis", spec)
	p.until("kpis", "it is suspended", time.Minute, phase(api.TrainingSuspended))
	spec.Suspend = false
	p.apply("kpis", spec)
	st = p.until("kpis", "it succeeds", 10*time.Minute, phase(api.TrainingSucceeded))
	t.Logf("%+v", st)
	r := <-p.kept
	if loss := st.Metrics["heldBackLoss"]; !(loss > 0 && loss < 0.7) || st.Step != 3000 {
		t.Errorf("what was learnt restores with an error of %g deviations squared; below 0.7 was expected: %+v", loss, st)
	}
	var golden struct {
		Inputs, Outputs []struct {
			Shape []int
			Data  []float64
		}
	}
	if err := json.Unmarshal(r["golden.json"], &golden); err != nil || len(golden.Inputs) != 1 || len(golden.Inputs[0].Shape) != 3 || len(golden.Outputs[0].Data) != golden.Inputs[0].Shape[0] {
		t.Errorf("golden inputs and outputs: %v %+v", err, golden)
	}
	if len(r["model.onnx"]) < 1000 {
		t.Errorf("the model has %d bytes", len(r["model.onnx"]))
	}
	p.swept()
}

// killRank ends one of the processes that train, as the kernel does for want of memory.
func killRank(t *testing.T) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range list {
		b, _ := os.ReadFile(file) // it may have ended
		words := strings.Split(string(b), "\x00")
		if len(words) > 2 && strings.HasSuffix(words[len(words)-2], "autoencoder.py") && !strings.Contains(string(b), "torch.distributed.run") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			proc, err := os.FindProcess(pid)
			if err == nil {
				err = proc.Kill()
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("killed rank %d: %q", pid, words)
			return
		}
	}
	t.Fatal("there is no rank")
}

// kpis are three devices' processor, memory and traffic over two days, a reading in five minutes.
func kpis() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "device,time,cpu,memory,traffic")
	for d := range 3 {
		for i := range 576 {
			day := 2 * math.Pi * float64(i) / 288
			noise := math.Sin(float64(i*7919+d*104729)) * 0.05
			fmt.Fprintf(&b, "box-%d,%d,%.4f,%.4f,%.4f\n", d, 1_700_000_000+300*i, 0.5+0.3*math.Sin(day)+noise, 0.6+0.1*math.Sin(day)-noise, 100+80*math.Sin(day-0.5)+10*noise)
		}
	}
	return b.Bytes()
}
