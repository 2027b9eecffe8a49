# shellcheck shell=bash disable=SC2154
# Restart, stop, upgrade and kill -9 of volumed: the mounts stay, and what changed meanwhile is done afterwards.

start_all
bring_up web
bring_up db
echo kept >"$(path_of web)/file"
web=$(mounts_of web)

# Stands for the server of a FUSE file system that a mount helper left in the unit.
sleep 1000 &
server=$!
echo "$server" >"/sys/fs/cgroup$(property ControlGroup)/cgroup.procs"

pid=$(main_process)
check "systemctl restart" systemctl restart volumed.service
differ "it is another process" "$pid" "$(main_process)"
same "the mount is the same one" "$web" "$(mounts_of web)"
check "volumectl wait finds it published" volumectl wait pod/web pod/db --timeout 30s
check "a process that serves a mount lives on" kill -0 "$server"

for round in 1 2 3; do
  pid=$(main_process)
  kill -KILL "$pid"
  reaches "killed ($round), it is started again" has_restarted volumed.service "$round"
  reaches "and is ready" is_state active volumed.service
  same "the mount is the same one" "$web" "$(mounts_of web)"
done
check "volumectl wait finds it published" volumectl wait pod/web pod/db --timeout 30s
check "with its data" holds web kept
same "the driver was asked once to stage and once to publish" $'NodeStageVolume\nNodePublishVolume' "$(calls_of web)"
check "a process that serves a mount lives on" kill -0 "$server"
kill "$server"

check "systemctl stop" systemctl stop volumed.service
same "stopped, it leaves the mount" "$web" "$(mounts_of web)"
rm "$manifests/db.yaml"
write_pod new
check "systemctl start" systemctl start volumed.service
check "what was added meanwhile comes up" volumectl wait pod/new --timeout 30s
check "what was removed meanwhile is taken down" volumectl wait --for=released pod/db --timeout 30s
check "PID 1 sees no mount of it" is_gone db
same "the mount that stayed is the same one" "$web" "$(mounts_of web)"
finish
