# shellcheck shell=bash disable=SC2154
# A volumed that stands still is started again by systemd, and its volumes do not notice.

drop_in volumed.service '[Service]' 'WatchdogSec=2s'
start_all
bring_up web
echo kept >"$(path_of web)/file"
before=$(mounts_of web)
pid=$(main_process)

# It is fed: well after its limit it is still the process that was started.
is_older_than() {
  local now
  now=$(awk '{ printf "%d", $1 * 1000 }' /proc/uptime)
  ((now - $(property ActiveEnterTimestampMonotonic) / 1000 > $1))
}
reaches "it runs longer than its limit" is_older_than 5000
same "and is the process that was started" "$pid 0" "$(main_process) $(restarts)"

kill -STOP "$pid"
reaches "systemd restarts it" has_restarted volumed.service 1
reaches "it runs again" is_state active volumed.service
differ "as another process" "$pid" "$(main_process)"
journal_has "the journal says why" "Watchdog timeout"
same "the mount is the same one" "$before" "$(mounts_of web)"
check "with its data" holds web kept
check "volumectl wait finds it published" volumectl wait pod/web --timeout 30s
finish
