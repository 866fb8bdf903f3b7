#!/usr/bin/env bash
# Builds the operators' CPU library in a copy of the tree, with other compiler flags than an install's, and
# runs their tests on it.
#   tools/ops_build.sh sanitize [pytest arguments]  AddressSanitizer and UndefinedBehaviorSanitizer,
#                                                   once per instruction set of this machine
#   tools/ops_build.sh static [pytest arguments]    libstdc++ and libgcc linked in, as some toolchains do
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
kind=${1:?sanitize or static}
shift
case $kind in
  sanitize)
    link="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    compile="$link -O1 -g1"
    ;;
  static)
    link="-static-libstdc++ -static-libgcc"
    compile=""
    ;;
  *)
    echo "sanitize or static, got $kind" >&2
    exit 2
    ;;
esac

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/comer_d2"
cp -r csrc tests setup.py pyproject.toml "$copy"
cp -r comer_d2/ops "$copy/comer_d2"
grep "^__version__" comer_d2/__init__.py >"$copy/comer_d2/__init__.py" # the operators alone
cd "$copy"

echo "building with $link"
FORCE_CUDA=0 COMER_D2_CXX_FLAGS="$compile" LDFLAGS="$link" \
  "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

export OMP_WAIT_POLICY=passive PYTHONPATH=$copy
if [ "$kind" = static ]; then
  "$python" -c "import comer_d2.ops as ops; print(ops.library_status()['cpu']); assert ops.cpu_capability()"
  "$python" -m pytest -q -p no:cacheprovider tests/ops/test_*attn.py tests/ops/test_token*.py \
    tests/ops/test_dispatch.py "$@"
  exit
fi

# The sanitizers' libraries must be in the process before Python itself; Python and torch leak and
# start threads in ways that are not the kernels' doing.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
for capability in $("$python" - <<'EOS'
from comer_d2.ops import cpu_capability
known = ["avx512", "avx2", "sse2"]
best = cpu_capability()
print(*(known[known.index(best):] if best in known else [best]))
EOS
); do
  echo "$capability:"
  COMER_D2_CPU_CAPABILITY=$capability "$python" -m pytest -q -p no:cacheprovider \
    tests/ops/test_*attn.py tests/ops/test_token*.py "$@"
done
