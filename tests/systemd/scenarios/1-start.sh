# shellcheck shell=bash disable=SC2154
# Start, one volume up and down, what systemd and the journal are told.

check "systemctl start returns when volumed says that it is ready" systemctl start volumed.service
same "it is a running service" "active running" "$(property ActiveState) $(property SubState)"
reaches "it tells systemd its state" has_status '[0-9]+ published'
pid=$(main_process)
same "it shares the mount namespace of PID 1" "$(readlink /proc/1/ns/mnt)" "$(readlink "/proc/$pid/ns/mnt")"
same "it cannot gain privileges" 1 "$(awk '/^NoNewPrivs:/ { print $2 }' "/proc/$pid/status")"
same "its system calls are filtered" 2 "$(awk '/^Seccomp:/ { print $2 }' "/proc/$pid/status")"
capabilities=$(capsh --decode="$(awk '/^CapBnd:/ { print $2 }' "/proc/$pid/status")")
check "it keeps the capability to mount" grep -q cap_sys_admin <<<"$capabilities"
check "it gave up the one to load modules" grep -qv cap_sys_module <<<"$capabilities"
same "its state is for root only" 700 "$(stat -c %a /var/lib/volumed)"

# The driver comes after volumed, and after the pod.
systemctl enable --quiet fakecsi.service
write_pod web
reaches "volumectl list knows the pod while its driver is missing" says web volumectl list
check "the driver's unit starts" systemctl start fakecsi.service
check "volumectl wait says that pod/web has its volume" volumectl wait pod/web --timeout 30s
check "PID 1 sees exactly one mount for it" is_mounted web
same "the driver was asked once to stage and once to publish" $'NodeStageVolume\nNodePublishVolume' "$(calls_of web)"
echo "written by a service" >/run/words
check "any other service can write into it" systemd-run --quiet --wait cp /run/words "$(path_of web)/file"
check "and the file is there" holds web "written by a service"
reaches "the state given to systemd counts it" has_status '(^|[^0-9])1 published'
journal_has "the journal has a line for it" "published"
reaches "the line can be found by the volume's field" says published journalctl --boot --output=cat VOLUME_PV=web-data
check "and by the driver's" says published journalctl --boot --output=cat "CSI_DRIVER=$driver"

directory=$(path_of web)
rm "$manifests/web.yaml"
check "volumectl wait --for=released says when it is taken down" volumectl wait --for=released pod/web --timeout 30s
check "PID 1 sees no mount of it" is_gone web
check "the pod's directory is gone" test ! -e "${directory%/volumes/*}"
finish
