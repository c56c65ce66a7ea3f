#!/usr/bin/env bash
# Runs everything that needs a GPU. It works offline and installs nothing. The machine needs Python, torch, Triton,
# rich, pytest, cmake, ninja, a C++ compiler and, for the CUDA library, nvcc. Each part ends within ten minutes.
#
#   benchmarks/gpu.sh OUT              run every part, one after the other
#   benchmarks/gpu.sh OUT PART...      run these parts only: build tests sanitize tune tasks variants steps float32
#                                      bfloat16 float16 large_256 large_512 large_1024 cuda_float32 cuda_bfloat16
#
# All parts together take about two hours. If there is only half an hour, run the parts that decide most, in this order:
# build, tests, tasks, variants, cuda_bfloat16, steps. A new machine needs "build" first. The part "tune" also needs
# typer; it leaves a file of measured times in OUT/measured, in the form in which such files come with fastrnn.
#
# OUT receives a log for each part, the measurements as JSON, and summary.txt.

# shellcheck disable=SC2329 # the functions are called by name, in another bash: see the end
set -uo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,13p' "$0" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd)
shift
parts=("$@")
all=(build tests sanitize tune tasks variants steps float32 bfloat16 float16
     large_256 large_512 large_1024 cuda_float32 cuda_bfloat16)
[ $# -gt 0 ] || parts=("${all[@]}")

# Link the package as an install would lay it out: kernels/ becomes fastrnn/kernels/, and the library that is built here
# takes the place of the repository's own kernels/_native/.
stage=${FASTRNN_STAGE:-/tmp/fastrnn-stage}
native=$stage/native/fastrnn/kernels/_native # where cmake installs, see CMakeLists.txt
link_entries() { # link_entries FROM TO: everything but what a build or Python left there
  local entry
  for entry in "$1"/*; do
    case ${entry##*/} in _native | __pycache__) ;; *) ln -s "$entry" "$2/" ;; esac
  done
}
rm -rf "$stage/fastrnn" && mkdir -p "$stage/fastrnn/kernels" || exit
link_entries "$repo/fastrnn" "$stage/fastrnn"
link_entries "$repo/kernels" "$stage/fastrnn/kernels"
ln -s "$native" "$stage/fastrnn/kernels/_native"
for name in benchmarks tests pyproject.toml; do ln -sfn "$repo/$name" "$stage/$name"; done
cd "$stage" || exit
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

compare() { # compare BACKEND NAME ARGUMENT...
  python3 -m benchmarks.compare --device cuda --backend "$1" --budget 0.5 --json "$out/$2.json" "${@:3}"
}

build() {
  cmake -S "$repo" -B "$stage/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_INSTALL_PREFIX="$stage/native" && cmake --build "$stage/build" --target install || exit
  ls -l "$native/"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv
  python3 - "$out/device.json" <<'PYTHON'
import json, subprocess, sys
import torch, triton
import fastrnn
p = torch.cuda.get_device_properties(0)
facts = {"device": p.name, "sms": p.multi_processor_count, "capability": [p.major, p.minor],
         "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
         "cudnn": torch.backends.cudnn.version(), "fastrnn": fastrnn.backend_info()}
json.dump(facts, open(sys.argv[1], "w"), indent=1)
print(json.dumps(facts))
PYTHON
}

tests() { # the float64 results on the CPU and the compilers take most of the time, so use several processes if possible
  local workers=()
  python3 -c 'import xdist' 2>/dev/null && workers=(-n 6) && export OMP_NUM_THREADS=2
  # Only this file: the others need packages that the machine may lack.
  python3 -m pytest -q --maxfail 20 -p no:cacheprovider "${workers[@]}" -m gpu tests/test_gpu.py
}

sanitize() {
  local failed=0 tool
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 170 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python3 -m benchmarks.gpu_variants --smoke || failed=1
  done
  return "$failed"
}

tune() { # what fastrnn chooses by itself
  local dtype failed=0
  export FASTRNN_CACHE_DIR=$out/measured
  for dtype in float32 bfloat16 float16; do
    python3 -m fastrnn tune --device cuda --dtype "$dtype" || failed=1
  done
  return "$failed"
}

variants() { python3 -m benchmarks.gpu_variants --json "$out/variants.json"; }
steps() { python3 -m benchmarks.gpu_variants --steps --json "$out/steps.json"; }

tasks() { # the layers of the tasks on pixels: T 784, I 1
  local failed=0 mode
  for mode in inference training; do
    compare triton "tasks-$mode" --cells LSTM GRU --hidden 32 64 128 --batch 200 500 --steps 784 \
      --mode "$mode" || failed=1
    compare triton "tasks-$mode-3x32" --cells LSTM GRU --hidden 32 --layers 3 --batch 300 500 --steps 784 \
      --mode "$mode" || failed=1
  done
  return "$failed"
}

grid() { # grid DTYPE HIDDEN...
  local failed=0 shape
  for shape in "784 1" "28 28" "128 H" "1024 H"; do
    compare triton "grid-$1-T${shape/ /-I}-${2}" --dtype "$1" --cells LSTM GRU --hidden "${@:2}" --batch 1 16 64 200 500 \
      --steps "${shape% *}" --input "${shape#* }" --budget 0.15 || failed=1
  done
  return "$failed"
}
float32() { grid float32 32 64 128; }
bfloat16() { grid bfloat16 32 64 128; }
float16() { grid float16 32 64 128; }
large_256() { grid float16 256; }
large_512() { grid float16 512; }
large_1024() { grid float16 1024; }

clusters() { # clusters DTYPE: layers whose weights take several multiprocessors
  local failed=0 mode
  for mode in inference training; do
    compare cuda "clusters-$1-$mode" --dtype "$1" --cells LSTM GRU --hidden 256 512 768 1024 --batch 16 64 \
      --steps 1024 --input H --mode "$mode" || failed=1
  done
  return "$failed"
}
cuda_float32() { clusters float32; }
cuda_bfloat16() { clusters bfloat16; }

export native out repo stage
export -f compare grid clusters "${all[@]}"
limit=${FASTRNN_PART_SECONDS:-570}
status=0
for part in "${parts[@]}"; do
  [[ " ${all[*]} " = *" $part "* ]] || { echo "gpu.sh: no part $part" >&2; exit 2; }
  start=$SECONDS
  timeout "$limit" bash -uo pipefail -c "$part" >"$out/$part.log" 2>&1
  code=$?
  [ "$code" -eq 0 ] || status=1
  { echo "== $part: exit $code, $((SECONDS - start)) s"; tail -n 40 "$out/$part.log"; } | tee -a "$out/summary.txt"
done
exit "$status"
