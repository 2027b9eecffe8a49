#!/usr/bin/env bash
# tests/systemd/run.sh [SCENARIO...]: volumed under a real systemd, each scenario in a box of its own (sdbox.sh).
#
# The programs are $VOLUMED, $VOLUMECTL, $VOLUMED_CSI_LOOP and $FAKECSI, by default those of target/debug; the units are
# systemd/'s own and, for the fake driver, tests/systemd/units. Needs root. The last line is "N passed, N failed", the status 0 when none failed;
# what a scenario that failed had in its journal is shown.
set -euo pipefail
export LC_ALL=C

cd "$(dirname "$0")/../.."
here=tests/systemd
limit=120

programs=("${VOLUMED:-target/debug/volumed}" "${VOLUMECTL:-target/debug/volumectl}"
  "${VOLUMED_CSI_LOOP:-target/debug/volumed-csi-loop}" "${FAKECSI:-target/debug/examples/fakecsi}")
for program in "${programs[@]}"; do
  if [[ ! -x $program ]]; then
    printf 'run.sh: there is no program %s; build them with: cargo build --bins --examples\n' "$program" >&2
    exit 66
  fi
done
if ((EUID != 0)); then
  echo "run.sh: it needs root" >&2
  exit 77
fi

if (($# == 0)); then
  for file in "$here"/scenarios/*.sh; do set -- "$@" "$(basename "$file" .sh)"; done
fi

temporary=$(mktemp -d "${TMPDIR:-/tmp}/volumed-systemd.XXXXXX")
running=
passed=0 failed=0

# shellcheck disable=SC2317  # the trap calls it
cleanup() {
  if [[ -n $running ]]; then
    kill -TERM "$running" 2>/dev/null || true
    wait "$running" || true
  fi
  rm -rf --one-file-system "$temporary"
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# Without debug information: the box keeps what it writes in memory.
mkdir "$temporary/bin"
for program in "${programs[@]}"; do cp "$program" "$temporary/bin/"; done

# run_scenario NAME: boots it and counts its lines.
run_scenario() {
  local name=$1 work=$temporary/$1 status=0 good bad
  mkdir -p "$work/units"
  cp -l -r "$temporary/bin" "$work/"
  cp "$here/lib.sh" "$work/"
  cp "$here/scenarios/$name.sh" "$work/scenario.sh"
  cp systemd/* "$here"/units/* "$work/units/"
  # What it leaves in the journal is kept for the person who reads of a failure.
  cat >"$work/run.sh" <<'RUN'
ln -sf /host/bin/* /usr/bin/
trap 'journalctl --output=short-precise >/host/journal 2>&1' EXIT
. /host/lib.sh
. /host/scenario.sh
not_passed "the scenario came to its end" ""
RUN

  printf '# %s\n' "$name"
  "$here/sdbox.sh" "$work" "$limit" >"$work/box.log" 2>&1 &
  running=$!
  wait "$running" || status=$?
  running=
  cat "$work/out.log"

  good=$(grep -c '^ok - ' "$work/out.log" || true)
  bad=$(grep -c '^not ok - ' "$work/out.log" || true)
  # A box that did not come to the end of its scenario has failed, whatever it printed.
  if ((bad == 0)) && { ((status != 0)) || ! grep -qx 'end of scenario' "$work/out.log"; }; then
    printf 'not ok - %s: the box ended with status %d\n' "$name" "$status"
    bad=1
  fi
  passed=$((passed + good)) failed=$((failed + bad))
  if ((bad)); then
    echo "--- what the box said"
    cat "$work/box.log"
    echo "--- its journal"
    grep -E 'volumed|fakecsi|e2e|watchdog' "$work/journal" 2>/dev/null | tail -n 80 || true
    echo "---"
  fi
}

for name in "$@"; do run_scenario "$name"; done

printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
