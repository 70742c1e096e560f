#!/usr/bin/env bash
# install-trainers.sh [DIR] [NAME...]: the trainers whose own code the tests load our data with, each in
# a virtual environment of its own below DIR (default .trainers): trl, ms-swift, llamafactory, axolotl,
# and datasets alone in its newest version. Nothing of headrace imports them. A second call does
# nothing. Where one cannot be had, it says why and goes on with the next; then it ends with 1.
#
# DIR/base holds what is large and the same for most (the CPU build of torch, transformers); the others
# see it through a .pth file, behind what they bring themselves. Python: $TRAINERS_PYTHON, else the
# checkout's own, else the first of 3.11 to 3.13.
set -uo pipefail
cd "$(dirname "$0")/.."
dir=${1:-.trainers}
shift || true
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(datasets trl ms-swift llamafactory axolotl)
failed=0

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

python=${TRAINERS_PYTHON:-}
for candidate in .venv/bin/python python3.11 python3.12 python3.13 python3; do
	[ -z "$python" ] && fits "$candidate" && python=$candidate
done
if [ -z "$python" ]; then
	echo "headrace: the trainers need Python 3.11 to 3.13 with venv; name one in TRAINERS_PYTHON" >&2
	exit 1
fi

packages_of() { "$dir/$1/bin/python" -c 'import site; print(site.getsitepackages()[0])'; }

# Makes DIR/NAME unless it is there as its steps say it should be. A step is the arguments of one
# `pip install`, or `empty MODULE`: a module of that name with nothing in it.
environment() {
	local name=$1 step
	shift
	local at=$dir/$name wanted
	wanted=$("$python" -V; printf '%s\n' "$@")
	[ "$(cat "$at/.installed" 2>/dev/null)" = "$wanted" ] && return
	echo "headrace: installing $name into $at"
	rm -rf "$at"
	"$python" -m venv "$at" || return 1
	[ "$name" = base ] || packages_of base >"$(packages_of "$name")/base.pth" || return 1
	for step in "$@"; do
		case $step in
		"empty "*) mkdir "$(packages_of "$name")/${step#empty }" || return 1 ;;
		*)
			# The words of a step are requirements and options, none with a blank.
			# shellcheck disable=SC2086
			"$at/bin/python" -m pip --quiet --disable-pip-version-check --no-input \
				install --no-compile --no-warn-conflicts $step || return 1
			;;
		esac
	done
	printf '%s\n' "$wanted" >"$at/.installed"
}

refused() {
	echo "headrace: $1" >&2
	failed=1
}

if ! environment base "torch==2.13.0+cpu" \
	"transformers==5.16.1 tokenizers==0.23.1 huggingface_hub==1.17.0 datasets==4.8.4 accelerate==1.13.0 peft==0.20.0 pillow"; then
	echo "headrace: no trainer can be had without the CPU build of torch (torch==2.13.0+cpu). If pip did" >&2
	echo "not find it, name PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL and try again." >&2
	exit 1
fi
for name in "${names[@]}"; do
	case $name in
	datasets)
		environment datasets "datasets==5.2.0 huggingface_hub==1.31.0" ||
			refused "datasets 5.2.0 could not be installed: its tests are skipped"
		;;
	trl)
		environment trl "trl==1.16.0" || refused "TRL 1.16.0 could not be installed: its tests are skipped"
		;;
	ms-swift)
		# Without its dependencies: most are for evaluation, its web pages and its hub, some are source
		# archives of packages that nobody keeps, and none of them is part of reading and training.
		environment ms-swift "--no-deps ms-swift==4.6.0 trl==0.29.1" \
			"modelscope==1.40.2 json_repair==0.64.6 pydantic==2.14.4 einops==0.8.2" ||
			refused "ms-swift 4.6.0 could not be installed: its tests are skipped"
		;;
	llamafactory)
		# Without its dependencies: they bring torchvision and torchaudio, builds for CUDA, and a web
		# page. The rest are the newest versions that it takes. It imports torchaudio whatever the
		# data is, and calls it for sound alone.
		environment llamafactory "transformers==5.6.0 datasets==4.0.0 accelerate==1.11.0 peft==0.18.1" \
			"--no-deps llamafactory==0.9.5 trl==0.24.0" "omegaconf==2.4.0" "empty torchaudio" ||
			refused "LLaMA-Factory 0.9.5 could not be installed: its tests are skipped"
		;;
	axolotl)
		# Without its dependencies: they ask for kernels that exist for GPUs alone (xformers, triton,
		# bitsandbytes, torchao) and for clients of six clouds. The versions it pins are those of base.
		environment axolotl "--no-deps axolotl==0.19.0 trl==1.9.0" \
			"pydantic==2.12.5 addict==2.4.0 colorama==0.4.6 posthog==6.7.11 numba==0.68.1 nvidia-ml-py==12.560.30 termcolor==3.3.0" ||
			refused "axolotl 0.19.0 could not be installed: its tests are skipped"
		;;
	*)
		echo "headrace: no trainer is called $name; known: datasets, trl, ms-swift, llamafactory, axolotl" >&2
		exit 2
		;;
	esac
done
exit $failed
