#!/usr/bin/env bash
# install-harbor.sh DIR: Harbor in a virtual environment of its own, for the tests and the bench that
# compare with it. Nothing of headrace imports it. Says what is missing where it cannot be made.
#
# It needs Python 3.12 or newer: $HARBOR_PYTHON, else the first found on PATH, in pyenv or by uv.
set -euo pipefail
dir=${1:?usage: install-harbor.sh DIR}
version=0.24.0

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

candidates() {
	[ -z "${HARBOR_PYTHON:-}" ] || { echo "$HARBOR_PYTHON"; return; }
	for name in python3.12 python3.13 python3.14 python3; do command -v "$name" || true; done
	ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python 2>/dev/null || true
	command -v uv >/dev/null && uv python find '>=3.12' 2>/dev/null || true
}

if [ -x "$dir/bin/python" ] &&
	[ "$("$dir/bin/python" -c 'from importlib.metadata import version as v; print(v("harbor"))' 2>/dev/null)" = "$version" ]; then
	exit 0
fi
python=
while read -r candidate; do
	if fits "$candidate"; then
		python=$candidate
		break
	fi
done < <(candidates)
if [ -z "$python" ]; then
	echo "headrace: Harbor needs Python 3.12 or newer with venv; none was found on PATH, in pyenv or" >&2
	echo "by uv. Install one, or name it in HARBOR_PYTHON." >&2
	exit 1
fi
echo "headrace: installing Harbor $version into $dir (about a minute, 400 MB)"
rm -rf "$dir"
"$python" -m venv "$dir"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check "harbor==$version"
