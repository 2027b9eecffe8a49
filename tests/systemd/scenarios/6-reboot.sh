# shellcheck shell=bash disable=SC2154
# The host is booted again: no mount is there, and all of them come back with their data.

if [[ ! -e /var/lib/before-reboot ]]; then
  start_all
  bring_up web
  bring_up db
  echo kept >"$(path_of web)/file"
  path_of web >/var/lib/before-reboot
  cp /proc/sys/kernel/random/boot_id /var/lib/boot-before-reboot
  # Taken away while the host is down, as far as volumed knows.
  systemctl stop volumed.socket volumed.service
  rm "$manifests/db.yaml"
  reboot
fi

differ "this is another boot" "$(cat /var/lib/boot-before-reboot)" "$(cat /proc/sys/kernel/random/boot_id)"
reaches "volumed was started with the host" is_state active volumed.service
check "volumectl wait says that pod/web has its volume" volumectl wait pod/web --timeout 30s
check "PID 1 sees exactly one mount for it" is_mounted web
same "at the path where it was" "$(cat /var/lib/before-reboot)" "$(path_of web)"
check "with its data" holds web kept
journal_has "the journal says that the host was booted" "the host was booted since"
check "what was removed before is released" volumectl wait --for=released pod/db --timeout 30s
check "PID 1 sees no mount of it" is_gone db
finish
