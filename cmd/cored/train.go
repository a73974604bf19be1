package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"tributary.dev/tributary/pkg/api"
	"tributary.dev/tributary/pkg/core/access"
	"tributary.dev/tributary/pkg/core/registry"
	"tributary.dev/tributary/pkg/core/server"
	"tributary.dev/tributary/pkg/core/store"
	"tributary.dev/tributary/pkg/core/train"
)

// trainOptions say where models are trained.
type trainOptions struct {
	containerd string // socket; empty: nothing is trained on this machine
	cpus       float64
	memory     string
}

func (t *trainOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&t.containerd, "train-containerd", "", "socket of the containerd in which training jobs run on this machine, such as /run/containerd/containerd.sock; empty: none do")
	f.Float64Var(&t.cpus, "train-cpus", 0, "how many processors training jobs may use together (default: all but one)")
	f.StringVar(&t.memory, "train-memory", "4GiB", "how much memory training jobs may use together")
}

func (c *core) openTrain(context.Context) error {
	drivers := map[string]train.Driver{}
	if t := c.o.train; t.containerd != "" {
		memory, err := units.RAMInBytes(t.memory)
		if err != nil || memory <= 0 {
			return &api.Error{Code: api.Invalid, Field: "--train-memory", Message: fmt.Sprintf("%q is no amount of memory", t.memory), Remedy: "write it as 4GiB"}
		}
		local, err := train.NewLocal(train.LocalConfig{Socket: t.containerd, Dir: c.o.data.path("training"), Images: c.registry, Now: time.Now, Log: c.log,
			Capacity: train.Capacity{CPUs: cmp.Or(t.cpus, max(1, float64(runtime.NumCPU()-1))), MemoryBytes: memory}})
		if err != nil {
			return err
		}
		c.closers = append(c.closers, local.Close)
		drivers["local"] = local
	}
	c.drivers = drivers
	c.train = train.New(train.Config{Store: trainings{c.store}, Drivers: drivers, Artifacts: c.registry, Keep: c.keepModel, Changed: c.trainingChanged, Now: time.Now, Log: c.log})
	return nil
}

// runTrain trains, and wakes the loop when somebody writes a job.
func (c *core) runTrain(ctx context.Context) error {
	go func() {
		for range c.store.Watch(ctx, store.WatchQuery{Kinds: []string{api.KindTrainingJob}, SpecOnly: true}) {
			select {
			case c.trainingChanged <- struct{}{}:
			default:
			}
		}
	}()
	return c.train.Run(ctx)
}

// trainings is the store as training sees it.
type trainings struct{ *store.SQL }

func (t trainings) Jobs(ctx context.Context) ([]*api.Object, error) {
	list, _, _, err := t.List(ctx, store.Query{Kind: api.KindTrainingJob})
	return list, err
}

// Media types of the ModelPack specification (github.com/modelpack/model-spec, docs/spec.md).
const (
	modelManifest = "application/vnd.cncf.model.manifest.v1+json"
	modelConfig   = "application/vnd.cncf.model.config.v1+json"
	modelWeight   = "application/vnd.cncf.model.weight.v1.raw"
	modelDoc      = "application/vnd.cncf.model.doc.v1.raw"
	modelFilePath = "org.cncf.model.filepath"
)

// keepModel keeps a training's result as a model: an OCI artifact that names what it was made of.
func (c *core) keepModel(ctx context.Context, o train.Order, r train.Result) (string, error) {
	if _, ok := r["model.onnx"]; !ok {
		return "", &api.Error{Code: api.Invalid, Message: "the trainer left no /work/result/model.onnx", Remedy: "see docs/training.md for what a trainer leaves"}
	}
	config, err := json.Marshal(map[string]any{
		"descriptor": map[string]any{"name": o.Spec.Model, "title": o.Tenant + "/" + o.Spec.Model},
		"config":     map[string]any{"format": "onnx"},
		"modelfs":    map[string]any{"type": "layers", "diffIds": []string{}},
		"tributary":  map[string]any{"job": o.UID, "image": o.Image, "data": o.Data, "parameters": o.Spec.Parameters},
	})
	if err != nil {
		return "", err
	}
	var names []string
	for name := range r {
		names = append(names, name)
	}
	slices.Sort(names)
	var layers []registry.Part
	for _, name := range names {
		mediaType := modelDoc
		if name == "model.onnx" {
			mediaType = modelWeight
		}
		layers = append(layers, registry.Part{MediaType: mediaType, Content: r[name], Annotations: map[string]string{modelFilePath: name, "org.opencontainers.image.title": name}})
	}
	repo := o.Tenant + "/" + o.Spec.Model
	digest, err := c.registry.PutArtifact(ctx, repo, "latest", modelManifest, registry.Part{MediaType: modelConfig, Content: config}, layers)
	if err != nil {
		return "", err
	}
	return repo + "@" + digest, nil
}

// trainingLogs answers with the newest lines of a job's ranks.
func (c *core) trainingLogs(w http.ResponseWriter, r *http.Request) {
	key := api.Key{Tenant: cmp.Or(r.URL.Query().Get("tenant"), api.DefaultTenant), Kind: api.KindTrainingJob, Name: r.PathValue("name")}
	o, err := c.server.Get(r.Context(), access.Operate, key)
	if err != nil {
		server.WriteError(w, err)
		return
	}
	var spec api.TrainingJobSpec
	if err := json.Unmarshal(o.Spec, &spec); err != nil {
		server.WriteError(w, err)
		return
	}
	spec = spec.Filled(o.Metadata.Name)
	d := c.drivers[spec.Driver]
	if d == nil {
		server.WriteError(w, &api.Error{Code: api.Unavailable, Message: "this core has no driver " + spec.Driver, Remedy: "see `cored run --help` for --train-…"})
		return
	}
	size := int64(64 << 10)
	if text := r.URL.Query().Get("bytes"); text != "" {
		if size, err = strconv.ParseInt(text, 10, 64); err != nil || size < 1 || size > 16<<20 {
			server.WriteError(w, &api.Error{Code: api.Invalid, Field: "bytes", Message: "not from 1 to 16777216: " + text, Remedy: "mend the number"})
			return
		}
	}
	b, err := d.Logs(r.Context(), o.Metadata.UID, size)
	if err != nil {
		server.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b) // who went away misses it
}
