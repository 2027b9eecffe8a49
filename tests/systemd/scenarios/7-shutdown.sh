# shellcheck shell=bash disable=SC2154
# A shutdown with everything running: volumed is stopped before PID 1 unmounts, so it repairs nothing that goes then.

if [[ ! -e /var/lib/before-reboot ]]; then
  start_all
  bring_up web
  unit=$(systemd-escape --path --suffix=mount "$(path_of web)")
  reaches "PID 1 has a unit for the mount, as for any it sees" is_state active "$unit"
  touch /var/lib/before-reboot
  reboot
fi

# The order of the journal's lines, because PID 1 wrote both of them.
order=$(journalctl --boot=-1 --output=cat _PID=1 | sed -nE 's/^Stopped volumed\.service.*/stopped/p; s/^Unmounting .*web.*/unmounting/p')
same "PID 1 unmounted the volume after volumed was stopped" $'stopped\nunmounting' "$order"
same "volumed repaired nothing on its way out" "" \
  "$(journalctl --boot=-1 --unit volumed.service --output=cat | grep -iE 'vanish|made again' || true)"
check "volumectl wait says that pod/web has its volume" volumectl wait pod/web --timeout 30s
finish
