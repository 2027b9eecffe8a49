# shellcheck shell=bash
# What `scripts/test` did, and how it says so: every command it runs is a check with a log of its own, every thing that
# did not run is a line, and one summary at the end tells all of it.
# Functions only; the caller has `set -euo pipefail`.
: "${logs:?a directory}" "${stage:?the running stage}" "${CI:?true or false}"

passed=0 failed=0      # tests, as cargo and our own scripts count them; a check that fails without a failed test counts as one
stage_lines=()         # one per stage
failures=()            # STAGE NAME LOG
not_run_lines=()       # one per thing left out
notes=()
running=               # the process group that runs now
declare -A stage_passed stage_failed stage_ran

# seconds_since MICROSECONDS: the time since then, as seconds with one digit.
now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }
seconds_since() {
  local tenths=$((($(now) - $1) / 100000))
  printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# may_be_left_out LINE: whether a test that did not run is no failure in CI. The two foreign programs that no registry
# serves come from the caller; once the caller gives one, its tests run or fail.
may_be_left_out() {
  local variable
  for variable in VOLUMED_TEST_HOSTPATHPLUGIN VOLUMED_TEST_REGISTRAR; do
    [[ $1 == *"$variable"* && -z ${!variable:-} ]] && return 0
  done
  return 1
}

# not_run NAME REASON: something of this stage was left out.
not_run() {
  local line="$stage: $1: $2" variable
  not_run_lines+=("$line")
  if may_be_left_out "$line"; then
    return
  fi
  for variable in VOLUMED_TEST_HOSTPATHPLUGIN VOLUMED_TEST_REGISTRAR; do
    # It was given, and yet the test says that it is missing.
    [[ $line == *"$variable"* ]] && fail "$1" "$2" && return
  done
  [[ $CI != true ]] || fail "$1" "not run, and in CI that is a failure: $2"
}

# fail NAME WHY: one failure that no test counted.
fail() {
  failures+=("$stage $1: $2")
  failed=$((failed + 1))
  stage_failed[$stage]=$((${stage_failed[$stage]:-0} + 1))
}

# check NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds, output to a log, and counts the tests in it.
check() {
  local name=$1 limit=$2 log=$logs/$stage-$1.log started status=0 good=0 bad=0 line
  shift 2
  started=$(now)
  printf '%-8s %-12s ' "$stage" "$name"
  # timeout makes a process group, so that its end is the end of all that the command started in it.
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null &
  running=$!
  wait "$running" || status=$?
  running=
  read -r good bad < <(count_tests "$log")
  stage_ran[$stage]=1
  passed=$((passed + good)) failed=$((failed + bad))
  stage_passed[$stage]=$((${stage_passed[$stage]:-0} + good))
  stage_failed[$stage]=$((${stage_failed[$stage]:-0} + bad))
  if ((status == 0 && bad == 0)); then
    printf 'ok      %7s s\n' "$(seconds_since "$started")"
  else
    local why="status $status"
    ((status != 124 && status != 137)) || why="ended after its $limit s"
    printf 'FAILED  %7s s  %s\n' "$(seconds_since "$started")" "$why"
    if ((bad)); then
      failures+=("$stage $name: $bad tests, log $log")
    else
      fail "$name" "$why, log $log"
    fi
    show_failure "$log"
  fi
  while IFS= read -r line; do
    not_run "${line%%: *}" "${line#*: }"
  done < <(tests_not_run "$log")
}

# count_tests LOG: PASSED FAILED, summed over cargo's test programs and our own scripts' closing lines.
count_tests() {
  { grep -oE '(test result: (ok|FAILED)\. [0-9]+ passed; [0-9]+ failed|^[0-9]+ passed, [0-9]+ failed$)' "$1" || true; } |
    sed 's/^test result: [^ ]* //' |
    awk '{ passed += $1; failed += $3 } END { print passed + 0, failed + 0 }'
}

# tests_not_run LOG: one line NAME: REASON for each test that said NOT-RUN, was ignored, and for each test file without a
# test in it (a renamed attribute or a `cfg` would else make it pass in silence).
tests_not_run() {
  sed -nE 's/^.*NOT-RUN: ([^:]+: .*)$/\1/p' "$1" | sort -u
  sed -nE 's/^test (.+) \.\.\. ignored(, (.*))?$/\1: ignored: \3/p' "$1"
  awk '/^ +Running tests\// { file = $2 }
       file && match($0, /test result: (ok|FAILED)\. 0 passed; 0 failed; 0 ignored/) { print file ": no test is in it" }
       /test result: / { file = "" }' "$1"
}

# show_failure LOG: what a person wants to see of it: the failed tests' own words if there are any, else its end.
# All of the log is read: with `head` the end of the pipe could come first, and with it the end of the run.
show_failure() {
  local text
  text=$(awk '/^failures:$/ { on = 1 } on { print } /^test result: / { on = 0 }
              /^error|^not ok / { more = 12 } more-- > 0 && !on { print }' "$1" | sed -n 1,150p)
  [[ -n $text ]] || text=$(tail -n 40 "$1")
  printf '    | %s\n' "${text//$'\n'/$'\n    | '}"
}

# end_stage MICROSECONDS WHERE: the stage's line in the summary.
end_stage() {
  local result=ok tests=
  [[ -n ${stage_ran[$stage]:-} ]] || result='not run'
  ((${stage_failed[$stage]:-0} == 0)) || result=FAILED
  ((${stage_passed[$stage]:-0} == 0)) || tests="${stage_passed[$stage]} passed"
  stage_lines+=("$(printf '%-8s %-8s %7s s  %-12s %s' "$stage" "$result" "$(seconds_since "$1")" "$tests" "$2")")
}

# summary MICROSECONDS MACHINE: what ran where, what did not and why, what failed; last, the counts on a line alone.
summary() {
  printf '\n=== summary: %s, %s s\n' "$2" "$(seconds_since "$1")"
  printf '%s\n' "${stage_lines[@]}"
  ((${#notes[@]} == 0)) || printf 'note: %s\n' "${notes[@]}"
  if ((${#not_run_lines[@]})); then
    printf 'did not run:\n'
    printf '  %s\n' "${not_run_lines[@]}"
  else
    printf 'everything asked for ran\n'
  fi
  if ((${#failures[@]})); then
    printf 'failed:\n'
    printf '  %s\n' "${failures[@]}"
  fi
  printf '%d passed, %d failed\n' "$passed" "$failed"
}
