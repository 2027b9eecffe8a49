# shellcheck shell=bash
# The foreign driver programs that the tests use and that the Go module proxy serves: csi-test's csi-sanity and
# mock-driver, pinned in tests/drivers/*/go.mod. Functions only; the caller has `set -euo pipefail`.

# The oldest Go that builds them, and the one that is brought where the machine's own is older.
go_wanted=1.25.0

# go_version: the version of the `go` on PATH as MAJOR.MINOR, 0.0 where there is none.
go_version() {
  local text
  text=$(GOTOOLCHAIN=local go version 2>/dev/null) || text=
  if [[ $text =~ go([0-9]+\.[0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; else echo 0.0; fi
}

# at_least HAVE WANT: whether MAJOR.MINOR HAVE is not older than WANT.
at_least() {
  [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# use_go DIR: puts a Go on PATH that is new enough.
#
# Debian 12 has Go 1.19, which cannot change its toolchain by itself, yet can bring one as a module. A module archive
# has no execute bits, so they are set here. DIR is any directory outside every Go module.
use_go() {
  local platform root
  export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0
  unset GOROOT
  at_least "$(go_version)" "${go_wanted%.*}" && return
  platform=$(go env GOOS)-$(go env GOARCH)
  printf 'Go %s is older than %s: bringing %s as a module\n' "$(go_version)" "${go_wanted%.*}" "$go_wanted"
  root=$(cd "$1" && go mod download -json "golang.org/toolchain@v0.0.1-go$go_wanted.$platform" | jq -er .Dir)
  chmod a+x "$root"/bin/* "$root/pkg/tool/${platform/-/_}"/*
  export GOROOT=$root PATH=$root/bin:$PATH
  at_least "$(go_version)" "${go_wanted%.*}"
}

# build_drivers OUT: builds OUT/csi-sanity and OUT/mock-driver. Each has a module of its own, because they cannot share
# one version of the CSI specification. What is up to date is not built again.
build_drivers() {
  local out
  mkdir -p "$1"
  out=$(realpath "$1")
  use_go "$out"
  go version
  (cd tests/drivers/sanity && go build -o "$out/csi-sanity" tool)
  (cd tests/drivers/mock && go build -o "$out/mock-driver" tool)
}
