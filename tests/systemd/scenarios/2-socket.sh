# shellcheck shell=bash disable=SC2154
# Socket activation: a call starts volumed, and the socket stays when it stops.

check "volumed.socket starts" systemctl start volumed.socket
same "volumed does not run for that" inactive "$(property ActiveState)"
same "the socket is root's, for it and its group" "660 root root" "$(stat -c '%a %U %G' /run/volumed/control.sock)"
inode=$(stat -c %i /run/volumed/control.sock)
check "a call is answered" volumectl list
reaches "volumed was started by it" is_state active volumed.service
check "volumed stops" systemctl stop volumed.service
same "the socket stays" "$inode" "$(stat -c %i /run/volumed/control.sock)"
same "systemd listens on it" active "$(property ActiveState volumed.socket)"
check "the next call is answered" volumectl list
reaches "by a volumed that was started for it" is_state active volumed.service
check "a call during a restart waits for the new volumed" bash -c 'systemctl restart --no-block volumed.service && volumectl list'
finish
