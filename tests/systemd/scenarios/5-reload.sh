# shellcheck shell=bash disable=SC2154
# systemctl reload: the configuration is read again by the same process; a bad one changes nothing.

start_all
bring_up web
web=$(mounts_of web)
pid=$(main_process)
check "systemctl reload" systemctl reload volumed.service
reaches "it is active again" is_state active volumed.service
same "it is the same process" "$pid" "$(main_process)"
journal_has "the journal says so" "[Rr]eload"
check "it still answers" volumectl wait pod/web --timeout 30s

echo 'this is = [not a configuration' >/etc/volumed/volumed.toml
systemctl reload volumed.service || true
journal_has "a bad configuration is named in the journal" "volumed\.toml"
reaches "and volumed stays active" is_state active volumed.service
same "as the same process" "$pid" "$(main_process)"
same "the mount is the same one" "$web" "$(mounts_of web)"
bring_up other
finish
