#!/usr/bin/env bash
# Installs what headrace needs from Debian where it is missing and we may: bubblewrap and
# debootstrap for the namespace provider, venv support for Python. Says what to do where not.
#
#   system-packages.sh [PROGRAM...]    further programs whose packages have their names
set -euo pipefail

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
for program in "$@"; do
	command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	echo "headrace: missing: ${missing[*]}. Install them with your package manager, for instance:" >&2
	echo "  sudo apt-get install -y ${missing[*]}" >&2
	# Without them the docker provider still works; only a missing venv is fatal.
	case " ${missing[*]} " in *" python3-venv "*) exit 1 ;; *) exit 0 ;; esac
fi
export DEBIAN_FRONTEND=noninteractive
echo "headrace: installing ${missing[*]}"
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
