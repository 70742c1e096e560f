#!/usr/bin/env bash
# bench-all.sh PYTHON: every benchmark once, with its JSON under bench/results/.
set -euo pipefail
python=${1:?usage: bench-all.sh PYTHON}
cd "$(dirname "$0")/.."
for bench in sandbox_shell episodes store tasks overhead; do
	"$python" -m "bench.$bench" --json "bench/results/$bench.json"
done
# Compares with Harbor, which wants an environment of its own (scripts/install-harbor.sh).
if [ -x .harbor/bin/harbor ]; then
	"$python" -m bench.parity --json bench/results/parity.json
else
	echo "bench-all: no Harbor in .harbor, parity is left out" >&2
fi
