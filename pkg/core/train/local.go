package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/identity/atomicfile"
)

// LocalConfig makes a Local.
type LocalConfig struct {
	Socket      string // of containerd
	Dir         string // folder for the jobs' own folders; made if needed
	Capacity    Capacity
	Runtime     string // "" = containerd's default
	Snapshotter string // "" = overlayfs
	// Images reads what Image and Data of an Order name.
	Images Content
	Now    func() time.Time
	Log    *slog.Logger
}

// Content reads artifacts by digest.
type Content interface {
	// Open opens a manifest or blob of a repository; size in bytes.
	Open(ctx context.Context, repo, digest string) (r io.ReadCloser, size int64, mediaType string, err error)
}

// Local runs jobs as containers on this machine. A job is one container whose ranks PyTorch's elastic
// launcher starts. It has no network but its own loopback, no right beyond a plain user's, a root that
// cannot be written, and nothing of the core's.
type Local struct {
	cfg    LocalConfig
	client *containerd.Client
	cpu    map[string]int64 // microseconds of each run, as last seen: what is over has no counters
}

// namespace keeps the containers apart from everybody else's.
const namespace = "tributary-train"

// user is whom a job runs as: nobody that this machine knows.
const user = 64170

// NewLocal connects to containerd. Close it.
func NewLocal(cfg LocalConfig) (*Local, error) {
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = "overlayfs"
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	opts := []containerd.Opt{containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(5 * time.Second)}
	if cfg.Runtime != "" {
		opts = append(opts, containerd.WithDefaultRuntime(cfg.Runtime))
	}
	client, err := containerd.New(cfg.Socket, opts...)
	if err != nil {
		return nil, &api.Error{Code: api.Unavailable, Field: "--train-containerd", Message: "containerd cannot be reached at " + cfg.Socket, Remedy: "start containerd, or leave the flag out to train nothing here", Err: err}
	}
	return &Local{cfg: cfg, client: client, cpu: map[string]int64{}}, nil
}

// Close ends the connection; jobs go on.
func (l *Local) Close() error { return l.client.Close() }

// Capacity is what the flags of the core say.
func (l *Local) Capacity() Capacity { return l.cfg.Capacity }

// Refuses implements Driver.
func (l *Local) Refuses(s *api.TrainingJobSpec) error {
	if s.Resources.GPUs > 0 {
		return &api.Error{Code: api.Invalid, Field: "spec.resources.gpus", Message: "the driver local gives no accelerators", Remedy: "leave gpus out, or use the driver kubernetes or ray"}
	}
	return nil
}

func (l *Local) dir(uid string) string  { return filepath.Join(l.cfg.Dir, uid) }
func (l *Local) work(uid string) string { return filepath.Join(l.dir(uid), "work") }

func (l *Local) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Start implements Driver.
func (l *Local) Start(ctx context.Context, o Order) error {
	ctx = l.context(ctx)
	if c, err := l.client.LoadContainer(ctx, o.UID); err == nil {
		if _, err := c.Task(ctx, nil); err == nil {
			return nil // it runs, or ran
		}
		if err := l.remove(ctx, c); err != nil {
			return err
		}
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	if err := l.lay(ctx, o); err != nil {
		return err
	}
	img, err := l.image(ctx, o.Image)
	if err != nil {
		return err
	}
	c, err := l.client.NewContainer(ctx, o.UID, containerd.WithSnapshotter(l.cfg.Snapshotter), containerd.WithImage(img),
		containerd.WithNewSnapshot(o.UID, img), containerd.WithContainerLabels(map[string]string{"tributary.dev/job": o.Tenant + "/" + o.Name}),
		containerd.WithNewSpec(l.spec(o, img)...))
	if err != nil {
		return fmt.Errorf("make the container: %w", err)
	}
	task, err := c.NewTask(ctx, cio.LogFile(filepath.Join(l.dir(o.UID), "log")))
	if err != nil {
		return errors.Join(fmt.Errorf("make the job's process: %w", err), l.remove(ctx, c))
	}
	if err := task.Start(ctx); err != nil {
		return errors.Join(err, l.remove(ctx, c))
	}
	return nil
}

// lay makes the job's folders: job and data to read, work to write.
func (l *Local) lay(ctx context.Context, o Order) error {
	dir := l.dir(o.UID)
	for _, d := range []string{dir, filepath.Join(dir, "job")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	work := l.work(o.UID)
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	if err := os.Chown(work, user, user); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(work, "suspend")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	raw, err := json.Marshal(map[string]any{"name": o.Name, "parameters": o.Spec.Parameters})
	if err != nil {
		return err
	}
	// What was said before this run counts no more for it.
	said, err := os.Stat(filepath.Join(work, "progress.jsonl"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from := int64(0)
	if err == nil {
		from = said.Size()
	}
	err = errors.Join(atomicfile.Write(filepath.Join(dir, "job", "job.json"), raw, 0o644),
		atomicfile.Write(filepath.Join(dir, "job", "hosts"), []byte("127.0.0.1 localhost trainer\n"), 0o644),
		atomicfile.Write(filepath.Join(dir, "from"), strconv.AppendInt(nil, from, 10), 0o644))
	if err != nil {
		return err
	}
	return l.layData(ctx, o)
}

// layData puts the files of the data set there: each layer is a file, named by its title (image-spec,
// annotations). They come into a folder that gets its name when they are whole.
func (l *Local) layData(ctx context.Context, o Order) error {
	to := filepath.Join(l.dir(o.UID), "data")
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	tmp := to + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	if o.Data != "" {
		if err := l.fetchData(ctx, o.Data, tmp); err != nil {
			return err
		}
	}
	return os.Rename(tmp, to)
}

func (l *Local) fetchData(ctx context.Context, pinned, dir string) error {
	repo, digest, _ := strings.Cut(pinned, "@")
	manifest, err := readManifest(ctx, l.cfg.Images, repo, digest)
	if err != nil {
		return err
	}
	for _, d := range manifest.Layers {
		name := d.Annotations["org.opencontainers.image.title"]
		if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return &api.Error{Code: api.Invalid, Field: "spec.data", Message: fmt.Sprintf("%s: a layer has the title %q", pinned, name), Remedy: "push files by plain names, e.g. `oras push …/kpis:1 kpis.csv:text/csv`"}
		}
		if err := copyBlob(ctx, l.cfg.Images, repo, d, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Suspend implements Driver.
func (l *Local) Suspend(_ context.Context, uid string) error {
	return os.WriteFile(filepath.Join(l.work(uid), "suspend"), nil, 0o644)
}

// Stop implements Driver.
func (l *Local) Stop(ctx context.Context, uid string) error {
	ctx = l.context(ctx)
	task, err := l.task(ctx, uid)
	if err != nil || task == nil {
		return err
	}
	err = task.Kill(ctx, unix.SIGKILL, containerd.WithKillAll)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (l *Local) task(ctx context.Context, uid string) (containerd.Task, error) {
	c, err := l.client.LoadContainer(ctx, uid)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	task, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	return task, err
}

// Observe implements Driver.
func (l *Local) Observe(ctx context.Context, uid string) (Run, error) {
	ctx = l.context(ctx)
	c, err := l.client.LoadContainer(ctx, uid)
	if errdefs.IsNotFound(err) {
		return Run{}, nil
	}
	if err != nil {
		return Run{}, err
	}
	info, err := c.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return Run{}, err
	}
	r := Run{Exists: true, Since: info.CreatedAt}
	if err := l.state(ctx, c, &r); err != nil {
		return Run{}, err
	}
	return r, l.read(uid, &r)
}

// state asks containerd how a job's process is. A machine that was restarted in between knows none:
// the run is over.
func (l *Local) state(ctx context.Context, c containerd.Container, r *Run) error {
	r.Exit, r.Until = 255, l.cfg.Now()
	task, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	status, err := task.Status(ctx)
	if err != nil {
		return err
	}
	if status.Status == containerd.Stopped {
		r.Exit, r.Until = int(status.ExitStatus), status.ExitTime
	} else {
		r.Running, r.Exit, r.Until = true, 0, time.Time{}
	}
	micros, killed := use(ctx, task)
	l.cpu[c.ID()] = max(l.cpu[c.ID()], micros)
	r.CPUMicros, r.Killed = l.cpu[c.ID()], killed
	return nil
}

// read adds what the trainer says.
func (l *Local) read(uid string, r *Run) error {
	from := int64(0)
	if b, err := os.ReadFile(filepath.Join(l.dir(uid), "from")); err == nil {
		from, _ = strconv.ParseInt(string(b), 10, 64) // written by us, whole
	}
	p, err := readProgress(filepath.Join(l.work(uid), "progress.jsonl"), from)
	r.Said, r.Step, r.Steps, r.First, r.Loss, r.Restarts = p.Said, p.Step, p.Steps, p.First, p.Loss, max(p.Starts-1, 0)
	return err
}

// Result implements Driver.
func (l *Local) Result(_ context.Context, uid string) (Result, error) {
	root, err := os.OpenRoot(l.work(uid)) // what the job made may be links to anywhere
	if err != nil {
		return nil, err
	}
	defer root.Close()
	list, err := fs.ReadDir(root.FS(), "result")
	if err != nil {
		return nil, &api.Error{Code: api.Invalid, Message: "the trainer left no folder /work/result", Remedy: "see docs/training.md for what a trainer leaves", Err: err}
	}
	out, left := Result{}, int64(maxResult)
	for _, e := range list {
		if !e.Type().IsRegular() || len(out) == 64 {
			return nil, &api.Error{Code: api.Invalid, Message: "/work/result holds more than 64 files, or what is no file: " + e.Name(), Remedy: "leave plain files alone there"}
		}
		f, err := root.Open(filepath.Join("result", e.Name()))
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, left+1))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		if left -= int64(len(b)); left < 0 {
			return nil, &api.Error{Code: api.TooLarge, Message: "the trainer's result is greater than 2 GiB", Remedy: "leave a smaller model"}
		}
		out[e.Name()] = b
	}
	return out, nil
}

// Remove implements Driver.
func (l *Local) Remove(ctx context.Context, uid string, all bool) error {
	ctx = l.context(ctx)
	c, err := l.client.LoadContainer(ctx, uid)
	if err == nil {
		err = l.remove(ctx, c)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if all {
		return os.RemoveAll(l.dir(uid))
	}
	return nil
}

func (l *Local) remove(ctx context.Context, c containerd.Container) error {
	if task, err := c.Task(ctx, nil); err == nil {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	delete(l.cpu, c.ID())
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Logs implements Driver.
func (l *Local) Logs(_ context.Context, uid string, bytes int64) ([]byte, error) {
	f, err := os.Open(filepath.Join(l.dir(uid), "log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-bytes)
	return io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
}

// Jobs implements Driver.
func (l *Local) Jobs(ctx context.Context) ([]string, error) {
	ctx = l.context(ctx)
	list, err := l.client.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, c := range list {
		uids = append(uids, c.ID())
	}
	dirs, err := os.ReadDir(l.cfg.Dir)
	for _, d := range dirs {
		uids = append(uids, d.Name())
	}
	slices.Sort(uids)
	return slices.Compact(uids), err
}
