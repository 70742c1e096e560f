#!/usr/bin/env bash
# install-peers.sh [DIR]: what `python -m bench.peers.run` compares headrace with, each in a virtual
# environment of its own: Harbor in .harbor (scripts/install-harbor.sh), mini-swe-agent and verifiers
# below DIR (default .peers). Nothing of headrace imports them. A second call does nothing.
#
# It needs Python 3.12 or newer for Harbor; the others take the first of 3.11 to 3.13 ($PEERS_PYTHON).
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-.peers}

scripts/install-harbor.sh .harbor
scripts/docker-compose.sh up >/dev/null

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

python=${PEERS_PYTHON:-}
for candidate in .harbor/bin/python python3.12 python3.13 python3.11 python3; do
	[ -z "$python" ] && fits "$candidate" && python=$candidate
done
if [ -z "$python" ]; then
	echo "headrace: the peers need Python 3.11 to 3.13 with venv; name one in PEERS_PYTHON" >&2
	exit 1
fi

# install NAME PACKAGE VERSION [MORE...]
install() {
	local at=$dir/$1 package=$2 version=$3
	shift 3
	if [ -x "$at/bin/python" ] &&
		[ "$("$at/bin/python" -c "from importlib.metadata import version as v; print(v('$package'))" 2>/dev/null)" = "$version" ]; then
		return
	fi
	echo "headrace: installing $package $version into $at"
	rm -rf "$at"
	"$python" -m venv "$at"
	"$at/bin/python" -m pip install --quiet --disable-pip-version-check "$package==$version" "$@"
}

# litellm imports mcp for every call that has tools, and does not ask for it.
install mini-swe-agent mini-swe-agent 2.4.6 litellm==1.106.2 mcp==2.0.0
install verifiers verifiers 0.4.0
