#!/usr/bin/env bash
# bench-all.sh PYTHON: every benchmark once, with its JSON under bench/results/.
set -euo pipefail
python=${1:?usage: bench-all.sh PYTHON}
cd "$(dirname "$0")/.."
for bench in sandbox_shell episodes store tasks; do
	"$python" -m "bench.$bench" --json "bench/results/$bench.json"
done
