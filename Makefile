# Tributary. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
GO ?= go
BIN := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION) -X tributary.dev/tributary/cmd/edgectl/cli.version=$(VERSION)
CNI := github.com/containernetworking/plugins/plugins
export CGO_ENABLED ?= 0

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install what Debian has and this project needs (root)
	@tests/install-deps

.PHONY: build
build: ## build cored, edged, edgectl, the log helper and the CNI plugins into bin/
	@mkdir -p $(BIN)/cni
	@# grpcnotrace leaves out grpc's debug pages, which keep the linker from dropping unused methods: edged -4.4 MB.
	$(GO) build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...
	@# gpud speaks with NVIDIA's library, whose binding needs C (decision 220). Without a C compiler it is built to say so.
	$(if $(and $(shell command -v gcc),$(filter $(shell $(GO) env GOHOSTARCH),$(shell $(GO) env GOARCH))),CGO_ENABLED=1 CGO_CFLAGS='-O2 -Wno-deprecated-declarations' $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/ ./cmd/gpud)
	@# The log helper, one per container, starts without Go's runtime where it can (cmd/edged-log): 0.05 MB each instead of 0.6.
	$(if $(filter amd64,$(shell $(GO) env GOARCH)),$(GO) build -trimpath -ldflags '-s -w -E main.bare' -o $(BIN)/ ./cmd/edged-log)
	$(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/cni/ $(CNI)/main/bridge $(CNI)/main/loopback $(CNI)/ipam/host-local $(CNI)/meta/portmap $(CNI)/meta/firewall

.PHONY: web
web: ## build the web console into web/dist, from where the next build takes it into cored (needs Node 20.19 or newer)
	@tests/web-build

.PHONY: openapi
openapi: ## note the REST API as it is now in web/openapi.json, of which the console's types are made
	$(GO) test -count=1 ./cmd/cored -run '^TestTheAPIKeepsItsWord$$' -args -update

.PHONY: webtest
webtest: web-deps web build ## a person at the console: Chromium against a real core with a real tree
	$(GO) test -count=1 -timeout 10m -run '^TestConsole$$' ./tests/console -v

.PHONY: web-deps
web-deps: deps
	@tests/install-deps web

.PHONY: screens
screens: web-deps web build ## every page of the console in both languages and themes, as pictures in build/screens
	TRIBUTARY_SCREENS=$(CURDIR)/build/screens $(GO) test -count=1 -timeout 15m -run '^TestConsole$$' ./tests/console -v

.PHONY: demo
demo: QUICK := vm vm-arm64
demo: deps build $(if $(filter ns,$(DEMO)),,quick-images) ## boot a relay and two field boxes on this machine and play the story (KEEP=1 leaves them up; DEMO=ns: five boxes in namespaces)
	$(GO) run ./tests/demo

.PHONY: quick-images
quick-images: # what machines of the demo and the tests boot, unless it is there in this version
	@for p in $(QUICK); do \
	  if [[ '$(VERSION)' == *-dirty ]] || ! grep -qsF '"version": "$(VERSION)"' build/$$p/build.json; then \
	    $(GO) run ./image build --quick --afresh --version '$(VERSION)' --profile $$p || exit; fi; done

.PHONY: image
image: ## build a system for boxes in build/PROFILE (PROFILE=generic-amd64; PRELOAD=dir, OUT=dir, RELEASE=version, COUNTER=n)
	$(GO) run ./image build --profile '$(or $(PROFILE),generic-amd64)' $(if $(OUT),--out '$(OUT)') $(if $(PRELOAD),--preload '$(PRELOAD)') $(if $(RELEASE),--version '$(RELEASE)') $(if $(COUNTER),--counter '$(COUNTER)')

.PHONY: test
test: deps build ## every test, with real containerd, namespaces, and machines that boot the image
	tests/run-tests

.PHONY: check
check: ## format, vet, linters, import rule, package docs, short race tests
	tests/run-checks

.PHONY: vmtest
vmtest: deps build ## every scenario on machines, hours; builds the images they start from, ends with a table (RUN=regexp; RESUME=1 runs what has not passed)
	@for p in vm vm-arm64 generic-amd64; do \
	  if [[ '$(VERSION)' == *-dirty ]] || ! grep -qsF '"version": "$(VERSION)"' build/$$p/build.json || ! grep -qF '"installer.iso"' build/$$p/build.json; then \
	    $(MAKE) --no-print-directory image PROFILE=$$p || exit; fi; done
	$(GO) run ./tests/vmtest -version '$(VERSION)' $(if $(RUN),-run '$(RUN)') $(if $(RESUME),-resume)

.PHONY: bench
bench: deps build ## one JSON line a figure; BENCH=name runs one, BENCH=update and BENCH=boot (needs make image PROFILE=vm) take minutes each; BENCH=nab NAB=path scores the detector, BENCH=metering counts 2 million records into PostgreSQL (LONG=1: 10 million)
	$(GO) run ./tests/bench $(BENCH)

.PHONY: replicas
replicas: ## kill -9 of either of two cores under load, ROUNDS=20
	TRIBUTARY_REPLICAS=$(or $(ROUNDS),20) $(GO) test -count=1 -timeout 120m -run TestReplicasUnderKills ./cmd/cored -v

.PHONY: chaos
chaos: deps build ## kill -9 of every party during the story, ROUNDS=50
	TRIBUTARY_CHAOS=$(or $(ROUNDS),50) $(GO) test -count=1 -timeout 120m -run TestChaos ./tests/scenario -v

.PHONY: functions
functions: deps ## kill -9 of every party while containers use virtual functions, in two machines, ROUNDS=200
	TRIBUTARY_VMTEST=1 TRIBUTARY_ROUNDS=$(or $(ROUNDS),200) $(GO) test -count=1 -timeout 4h -run '^TestFunctions$$' ./tests/machines -v

.PHONY: training
training: deps ## make the image in which the core trains models, in build/training, and train with it: minutes, 200 MB of packages
	$(GO) run ./image training
	TRIBUTARY_TRAINING=$(CURDIR)/build/training $(GO) test -count=1 -timeout 40m -run '^TestTorch$$' ./tests/training -v

.PHONY: sim
sim: ## the link's simulation, SCHEDULES=5000
	$(GO) test -count=1 -timeout 60m ./pkg/link/ -run TestSchedules -schedules $(or $(SCHEDULES),5000)

.PHONY: rollout-sim
rollout-sim: ## rollouts to 10,000 simulated devices of which much fails, in virtual time
	SIM=1 $(GO) test -count=1 -timeout 60m -v -run TestTenThousand ./pkg/core/rollout

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=30s
	tests/run-fuzz $(or $(FUZZTIME),30s)

.PHONY: fmt
fmt: ## format all Go files
	gofmt -w cmd hwprofiles image pkg tests

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache
