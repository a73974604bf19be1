# Compiles gpud, in a folder that holds the locked packages, Go and the sources. JOBS is how many compilers run at a time,
# which changes no bit. Nothing is fetched: the modules are there.
set -eu
export LC_ALL=C TZ=UTC HOME=/build TMPDIR=/tmp SOURCE_DATE_EPOCH=946684800
export GOROOT=/go GOMODCACHE=/mod GOCACHE=/cache GOPROXY=off GOTOOLCHAIN=local GOFLAGS= GOWORK=off GOOS=linux GOARCH=amd64 GOAMD64=v1
export CGO_ENABLED=1 CC=gcc-12 CGO_CFLAGS='-O2 -Wno-deprecated-declarations' CGO_LDFLAGS=
umask 022
cd /src
exec /go/bin/go build -p "$JOBS" -trimpath -buildvcs=false -ldflags '-s -w -buildid= -linkmode=external -extldflags=-Wl,--build-id=none' -o /build/gpud ./cmd/gpud
