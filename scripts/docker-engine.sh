#!/bin/sh
# Brings up a Docker engine where none runs, and takes down only what it started.
#
#   docker-engine.sh up       use the engine that answers on the default socket, else start one;
#                             prints DOCKER_HOST=unix://... as the last line
#   docker-engine.sh status   the same line if an engine answers, else exit 1
#   docker-engine.sh down     stop the engine this script started, and unmount what it left
#
# Everything lives in one folder, $HEADRACE_ENGINE_DIR (default /var/lib/headrace-engine): images,
# containers, pidfile, socket, log. `down` keeps the images; remove the folder to be rid of them.
# Needs root. Installs Debian's docker.io when there is no dockerd. Does not touch an engine
# that was there before, nor the machine's service manager.
set -eu

state=${HEADRACE_ENGINE_DIR:-/var/lib/headrace-engine}
default_socket=/var/run/docker.sock
wait_s=${HEADRACE_ENGINE_WAIT_S:-60}

# The socket lies in a short path of its own: a socket's path may have 107 bytes at most.
socket=$state/docker.sock
pidfile=$state/dockerd.pid
log=$state/dockerd.log

say() { printf '%s\n' "$*" >&2; }
die() { say "docker-engine: $*"; exit 1; }

answers() {
    [ -S "$1" ] && curl -fsS --max-time 5 --unix-socket "$1" http://docker/_ping >/dev/null 2>&1
}

# True if the pidfile names a live dockerd that was started with this folder's pidfile.
ours_runs() {
    [ -r "$pidfile" ] || return 1
    pid=$(cat "$pidfile")
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "--pidfile=$pidfile"
}

install_engine() {
    command -v apt-get >/dev/null 2>&1 ||
        die "no dockerd and no apt-get here: install a Docker engine by hand, then try again"
    say "docker-engine: installing docker.io"
    # The package starts a service where it can; a policy of 101 forbids that for this one call.
    policy=/usr/sbin/policy-rc.d
    made_policy=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy=1
    fi
    result=0
    { DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            docker.io iptables curl ca-certificates; } >&2 || result=$?
    [ -z "$made_policy" ] || rm -f "$policy"
    [ "$result" = 0 ] || die "apt-get could not install docker.io (see above)"
}

# The control groups that dockerd wants; on a machine with a service manager they are all there.
mount_cgroups() {
    [ -e /sys/fs/cgroup/cgroup.controllers ] && return 0
    awk '$2 == "/sys/fs/cgroup" || $2 ~ "^/sys/fs/cgroup/" { n++ } END { exit !n }' /proc/mounts &&
        return 0
    mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
}

launch() {
    # A new session, so that nothing of the caller's terminal or process group reaches it.
    setsid dockerd \
        --host="unix://$socket" --pidfile="$pidfile" \
        --data-root="$state/data" --exec-root="$state/exec" \
        --userland-proxy=false "$@" \
        >"$log" 2>&1 </dev/null &
    launched=$!
    waited=0
    while [ "$waited" -lt "$((wait_s * 5))" ]; do
        answers "$socket" && return 0
        kill -0 "$launched" 2>/dev/null || return 1
        sleep 0.2
        waited=$((waited + 1))
    done
    kill "$launched" 2>/dev/null || true
    return 1
}

unmount_rest() {
    # Deepest first; only below our own folder.
    awk -v root="$state/" 'index($2, root) == 1 { print length($2), $2 }' /proc/mounts |
        sort -rn | cut -d' ' -f2- | while read -r mount_point; do
        umount "$mount_point" 2>/dev/null || umount -l "$mount_point" || true
    done
}

up() {
    if answers "$default_socket"; then
        say "docker-engine: an engine answers on $default_socket; using it"
        echo "DOCKER_HOST=unix://$default_socket"
        return
    fi
    if ours_runs && answers "$socket"; then
        echo "DOCKER_HOST=unix://$socket"
        return
    fi
    [ "$(id -u)" = 0 ] || die "starting an engine needs root: run it as root, or install Docker"
    command -v dockerd >/dev/null 2>&1 && command -v curl >/dev/null 2>&1 || install_engine
    [ "${#socket}" -le 107 ] || die "the path $socket is too long for a socket"
    mkdir -p "$state"
    chmod 711 "$state"
    if ours_runs; then down; fi
    unmount_rest
    rm -f "$pidfile" "$socket"
    mount_cgroups
    if ! launch; then
        # A kernel or a machine without iptables still runs containers without a network.
        if grep -qiE 'iptables|nf_tables|bridge' "$log"; then
            say "docker-engine: no bridge here; containers get no network"
            rm -f "$pidfile" "$socket"
            launch --iptables=false --ip6tables=false --bridge=none || true
        fi
        answers "$socket" || die "dockerd does not answer; the end of $log:
$(tail -n 15 "$log")"
    fi
    echo "DOCKER_HOST=unix://$socket"
}

down() {
    if ours_runs; then
        kill -TERM "$pid"
        waited=0
        while ours_runs && [ "$waited" -lt 150 ]; do
            sleep 0.2
            waited=$((waited + 1))
        done
        if ours_runs; then
            say "docker-engine: dockerd did not end in 30 s; killing it"
            kill -KILL "$pid"
            sleep 0.2
        fi
        say "docker-engine: stopped"
    else
        say "docker-engine: no engine of ours runs"
    fi
    unmount_rest
    rm -f "$socket" "$pidfile"
}

status() {
    for candidate in "$default_socket" "$socket"; do
        if answers "$candidate"; then
            echo "DOCKER_HOST=unix://$candidate"
            return
        fi
    done
    say "docker-engine: no engine answers; bring one up with: scripts/docker-engine.sh up"
    exit 1
}

case ${1:-} in
up | down | status) "$1" ;;
*)
    sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
