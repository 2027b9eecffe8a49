# shellcheck shell=bash
# The fuzz targets of tests/fuzz under libFuzzer. Functions only; the caller has `set -euo pipefail` and stands in the
# repository's root.

# Version of cargo-fuzz, which knows how a target is built.
fuzz_wanted=0.13.1

# build_fuzz TOOLS: builds every target below target/fuzz, with a cargo-fuzz that is installed below TOOLS where it is missing.
#
# Without a sanitizer: what is fuzzed has no unsafe code, and so the pinned toolchain does, where a sanitizer needs a nightly
# one.
build_fuzz() {
  if [[ $("$1/bin/cargo-fuzz" --version 2>/dev/null) != "cargo-fuzz $fuzz_wanted" ]]; then
    cargo install --quiet --debug --locked --root "$1" --version "$fuzz_wanted" cargo-fuzz
  fi
  "$1/bin/cargo-fuzz" build --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none --dev
}

# run_fuzz SECONDS: runs each target for so long, as many at a time as there are processors. What a target finds on its way
# stays below target/fuzz/corpus for the next run; what breaks it is named, to be put into tests/fuzz/corpus with its mend.
# The last line says how many targets passed and failed.
run_fuzz() {
  local targets programs target
  programs=target/fuzz/$(rustc -vV | sed -n 's/^host: //p')/debug
  mapfile -t targets < <(basename -s .rs tests/fuzz/fuzz_targets/*.rs)
  export -f fuzz_one
  export programs
  for target in "${targets[@]}"; do rm -f "target/fuzz/$target.ok"; done
  printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz_one "$@"' - {} "$1" || true
  local good=0
  for target in "${targets[@]}"; do
    if [[ -e target/fuzz/$target.ok ]]; then
      good=$((good + 1))
    else
      printf 'error: the fuzz target %s failed:\n' "$target"
      grep -aE -A 4 'panicked at|^ALARM|ERROR: libFuzzer|Test unit written' "target/fuzz/$target.log" | cut -c -1000
    fi
  done
  printf '%d passed, %d failed\n' "$good" $((${#targets[@]} - good))
  ((good == ${#targets[@]}))
}

# fuzz_one TARGET SECONDS: one target with a log of its own; TARGET.ok says that nothing broke it. An input may take 10 s and
# 2 GiB, far more than any of them needs.
fuzz_one() {
  local target=$1 options
  options=(-max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1
    -artifact_prefix="target/fuzz/artifacts/$target/")
  [[ ! -e tests/fuzz/$target.dict ]] || options+=(-dict="tests/fuzz/$target.dict")
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/artifacts/$target"
  "$programs/$target" "${options[@]}" "target/fuzz/corpus/$target" "tests/fuzz/corpus/$target" \
    >"target/fuzz/$target.log" 2>&1 </dev/null || return 0
  touch "target/fuzz/$target.ok"
  printf '%s: %s\n' "$target" "$(sed -n 's/^Done \(.*\)/\1/p' "target/fuzz/$target.log")"
}
