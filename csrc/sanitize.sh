#!/usr/bin/env bash
# Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the tree and
# runs the operator's tests on them, once per instruction set of this machine.
#   csrc/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/comer_d2"
cp -r csrc tests setup.py pyproject.toml "$copy"
cp -r comer_d2/ops "$copy/comer_d2"
touch "$copy/comer_d2/__init__.py" # the operator alone
cd "$copy"

flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
echo "building with $flags"
FORCE_CUDA=0 COMER_D2_CXX_FLAGS="$flags -O1 -g1" LDFLAGS="$flags" \
  "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

# The sanitizers' libraries must be in the process before Python itself; Python and torch leak and
# start threads in ways that are not the kernels' doing.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export OMP_WAIT_POLICY=passive
for capability in $("$python" - <<'EOF'
from comer_d2.ops import cpu_capability
known = ["avx512", "avx2", "sse2"]
best = cpu_capability()
print(*(known[known.index(best):] if best in known else [best]))
EOF
); do
  echo "$capability:"
  COMER_D2_CPU_CAPABILITY=$capability "$python" -m pytest -q -p no:cacheprovider \
    tests/ops/test_ms_deform_attn.py "$@"
done
