#!/usr/bin/env bash
# with-docker-engine.sh COMMAND...: runs the command with a Docker engine, bringing one up for its
# length where none runs and we are root. Takes down only what it started. As root it also makes
# sure of the compose plugin.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if ! "$here/docker-engine.sh" status >/dev/null 2>&1; then
	if [ "$(id -u)" -eq 0 ]; then
		trap '"$here/docker-engine.sh" down || true' EXIT # also after Ctrl-C
		"$here/docker-engine.sh" up
	else
		echo "headrace: no Docker engine and not root: what needs one is skipped" >&2
	fi
fi
address=$("$here/docker-engine.sh" status 2>/dev/null | sed -n 's/^DOCKER_HOST=//p') || true
[ -n "$address" ] && export DOCKER_HOST="$address"
if [ -n "$address" ] && [ "$(id -u)" -eq 0 ]; then
	"$here/docker-compose.sh" up >/dev/null ||
		echo "headrace: no docker compose: tasks with several containers are refused" >&2
fi
code=0
"$@" || code=$?
exit "$code"
