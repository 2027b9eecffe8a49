# shellcheck shell=bash disable=SC2154
# The driver's unit is restarted, killed and stopped: its volumes stay, and volumed finds it again by itself.

start_all
bring_up web
web=$(mounts_of web)
pid=$(main_process)

check "systemctl restart of the driver" systemctl restart fakecsi.service
bring_up two
same "the mount is the same one" "$web" "$(mounts_of web)"

kill -KILL "$(main_process fakecsi.service)"
reaches "killed, the driver is started again" has_restarted fakecsi.service 1
bring_up three
same "the mount is the same one" "$web" "$(mounts_of web)"

check "the driver's unit is stopped" systemctl stop fakecsi.service
same "the mount is the same one" "$web" "$(mounts_of web)"
journal_has "the journal says that the driver went" "$driver does not answer"
rm "$manifests/two.yaml"
write_pod four
check "volumectl wait ends when its time is up" ends_with 124 volumectl wait pod/four --timeout 3s
check "what nobody can unpublish stays" is_mounted two
check "the driver's unit starts" systemctl start fakecsi.service
check "what waited for it comes up" volumectl wait pod/four --timeout 30s
check "and goes down" volumectl wait --for=released pod/two --timeout 30s
check "PID 1 sees no mount of it" is_gone two
same "the mount that stayed is the same one" "$web" "$(mounts_of web)"
same "volumed ran all the time" "$pid 0" "$(main_process) $(restarts)"
finish
