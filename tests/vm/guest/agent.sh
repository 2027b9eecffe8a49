#!/usr/bin/env bash
# The machine's end of its test's wire, the second serial port. A line in is "NUMBER SCRIPT", the script in base64; the line
# out is "@@NUMBER STATUS OUTPUT". "@@ready" tells that it has begun, so a test that reads it knows of a boot.
set -uo pipefail

wire=/dev/ttyS1
stty -F "$wire" raw -echo
exec 3<>"$wire"
echo @@ready >&3
while IFS=' ' read -r number script <&3; do
  status=0
  base64 --decode <<<"$script" >/run/test-script
  bash /run/test-script >/run/test-output 2>&1 </dev/null 3>&- || status=$?
  printf '@@%s %d %s\n' "$number" "$status" "$(base64 --wrap=0 /run/test-output)" >&3
done
