#!/usr/bin/env bash
# Runs the operator's tests on the binary that is built here under another version of torch, in an
# environment of its own below build/.
#   tools/other_torch.sh VERSION [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
shift

environment=$PWD/build/torch-$version
if [ ! -x "$environment/bin/pytest" ]; then
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check "torch==$version" numpy safetensors pytest
fi
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/comer_d2"
cp -r tests pyproject.toml "$copy"
cp -r comer_d2/ops comer_d2/*.abi3.so "$copy/comer_d2"
touch "$copy/comer_d2/__init__.py" # the operator alone
cd "$copy"
export PYTHONPATH=$copy OMP_WAIT_POLICY=passive
"$environment/bin/python" - <<'EOT'
import torch
from comer_d2.ops import library_status

status = library_status()["cpu"]
print(f"torch {torch.__version__}: {status}")
raise SystemExit(None if status.startswith("compiled") else "the binary did not load")
EOT
"$environment/bin/pytest" -q -p no:cacheprovider tests/ops/test_*attn.py \
  tests/ops/test_token*.py tests/ops/test_dispatch.py "$@"
