# shellcheck shell=bash disable=SC2154
# In a mount namespace of its own volumed would mount where nobody sees it: it refuses, and says why.

for setting in PrivateTmp=yes ProtectSystem=strict ProtectHome=yes PrivateMounts=yes; do
  drop_in volumed.service '[Service]' "$setting" Restart=no
  check "it does not start with $setting" bash -c '! systemctl start volumed.service'
  same "the unit has failed" failed "$(property ActiveState)"
  journal_has "the journal says that its mount namespace is the reason" "mount namespace"
  journalctl --rotate --vacuum-time=1s --quiet
  systemctl reset-failed volumed.service
done
rm -r /etc/systemd/system/volumed.service.d
systemctl daemon-reload
start_all
bring_up web
finish
