#!/usr/bin/env bash
# Run everything that a short time on a GPU should show, most valuable first. A part that fails or runs out of time does
# not stop the others.
#     bash .gpu_run/first_run.sh            where prepare.sh's folders are; or, in a checkout,
#     bash benchmarks/gpu/first_run.sh
# OUT: the folder for the results (.gpu_run/results).  RUN_SECONDS: time for all parts (570).
# RUN_ONLY: names of parts, separated by spaces, to run no others.
# PYTHON: the interpreter (python3).  MDMF_FAKE_GPU=1: rehearse without a GPU.
set -u
begun=$SECONDS
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -f "$here/checkout.tar.gz" ]; then
    staged=$here root=$scratch/checkout
    mkdir "$root"
    tar --extract --gzip --file "$here/checkout.tar.gz" --directory "$root" || exit 1
else
    root=$(cd "$here/../.." && pwd) staged=$root/.gpu_run
fi
kit=$root/benchmarks/gpu
out=${OUT:-$staged/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
end=$((begun + ${RUN_SECONDS:-570}))
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MDMF_CACHE=${MDMF_CACHE:-${TMPDIR:-/tmp}/mdmf-gpu-cache}
if [ -z "${MDMF_FAKE_GPU:-}" ]; then export MDMF_REQUIRE_GPU=1; fi
mapfile -t wheels < <(find "$staged/../.whl" -type f -name '*.whl' 2>/dev/null)
if [ ${#wheels[@]} -gt 0 ] && [ -z "${MDMF_FAKE_GPU:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" "${wheels[@]}" 2>&1 | tail -3
fi
export PYTHONPATH=$scratch/site:$root
export kit python
summary=()

wanted() { [ -z "${RUN_ONLY:-}" ] || [[ " $RUN_ONLY " == *" $1 "* ]]; }

# part NAME SECONDS FILE COMMAND...: run a command for at most so long and never past the end, its output in the file.
part() {
    local name=$1 most=$2 file=$out/$3 left=$((end - SECONDS)) at=$SECONDS code
    shift 3
    wanted "$name" || return 0
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 8 ]; then summary+=("$name: no time left"); return 0; fi
    echo "=== $name (at most $most s)" >>"$file"
    (cd "$root" && timeout -k 5 "$most" "$@") >>"$file" 2>&1
    code=$?
    echo "=== $name: exit $code after $((SECONDS - at)) s" >>"$file"
    summary+=("$name: exit $code after $((SECONDS - at)) s$([ $code = 124 ] || [ $code = 137 ] && echo ', out of time')")
    echo "--- $name: exit $code, $((SECONDS - at)) s, $((SECONDS - begun)) s in"
}

# beside NAME SECONDS FILE COMMAND...: the same in the background.
declare -A pids
beside() {
    wanted "$1" || return 0
    (part "$@" && printf '%s' "${summary[-1]#*: }" >"$scratch/$1.code") >/dev/null &
    pids[$1]=$!
}

facts() {
    nvidia-smi
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv
    nvcc --version | tail -2
    for tool in ncu compute-sanitizer cuobjdump; do command -v $tool && $tool --version | tail -1; done
    nproc
    grep -m1 'model name' /proc/cpuinfo
    "$python" "$kit/facts.py"
}
export -f facts

sanitize() {
    local tool=$1 widths=$2
    shift 2
    # shellcheck disable=SC2086
    compute-sanitizer --tool "$tool" --report-api-errors no --print-limit 20 --error-exitcode 9 "$@" \
        "$python" "$kit/sanitize.py" --widths $widths
}
export -f sanitize

# --- Facts first. Reading PyTorch from the disk meanwhile saves a later part the wait.
("$python" -c 'import torch; torch.zeros(1)' >/dev/null 2>&1 &)
part facts 60 0_facts.txt bash -c facts
tail -4 "$out/0_facts.txt" 2>/dev/null

# --- Right or wrong: everything that is not timed runs side by side.
gpu_tests="tests/hardware/test_gpu.py tests/hardware/test_device.py tests/runtime/test_on_a_gpu.py"
project_tests() {
    # Some tests export a model, which needs nncf.
    local deselected=
    "$python" -c 'import nncf' 2>/dev/null ||
        deselected="--deselect tests/runtime/test_on_a_gpu.py::test_a_plan_that_was_cut_short_is_built_again"
    # shellcheck disable=SC2086
    "$python" -m pytest -p no:cacheprovider -n 0 -m gpu -rA --tb=short $deselected $gpu_tests
    local first=$?
    # test_device.py runs this file in a process of its own. Here its tests show one by one, and warnings as warnings.
    cd tests/hardware || exit 1
    MDMF_TEST_DEVICE=cuda-core "$python" -m pytest -p no:cacheprovider -n 0 -o filterwarnings=default -rA --tb=short \
        device_contract.py
    local second=$?
    return $((first > second ? first : second))
}
export gpu_tests
export -f project_tests

beside tests 75 2_tests.txt bash -c project_tests
beside memcheck 75 5_memcheck.txt bash -c 'sanitize memcheck "64 128 256"'
beside racecheck 75 5_racecheck.txt bash -c 'sanitize racecheck "64 128" --racecheck-report all'
beside initcheck 60 5_initcheck.txt bash -c 'sanitize initcheck 64'
beside synccheck 60 5_synccheck.txt bash -c 'sanitize synccheck 64'
part check 80 1_check.txt "$python" "$kit/check.py"
grep -c '^PASS' "$out/1_check.txt" 2>/dev/null
grep '^FAIL' "$out/1_check.txt" 2>/dev/null | cut -c1-300 | head -30
for name in "${!pids[@]}"; do
    wait "${pids[$name]}"
    summary+=("$name: $(cat "$scratch/$name.code" 2>/dev/null || echo 'did not run')")
done
for tool in memcheck initcheck synccheck racecheck; do
    [ -f "$out/5_$tool.txt" ] && cat "$out/5_$tool.txt" >>"$out/5_sanitizer.txt" && rm "$out/5_$tool.txt"
done
echo "--- right or wrong: $((SECONDS - begun)) s in"

# --- How fast, alone on the GPU.
part headline 70 4_benchmark.txt "$python" "$kit/run.py" --only headline --no-record
part times 45 3_times.txt "$python" "$kit/kernel_times.py" --skip variants
part detect 80 7_detect.txt "$python" "$kit/detect_folder.py"
part wgmma 45 3_times.txt "$python" "$kit/wgmma.py"
part ncu 60 6_ncu.txt ncu --clock-control none --target-processes all --set full -k regex:mdmf_ -c 12 -f \
    -o "$out/8_kernels" "$python" "$kit/counters.py"
if wanted ncu && [ -f "$out/8_kernels.ncu-rep" ]; then
    timeout 30 ncu --import "$out/8_kernels.ncu-rep" --page details >>"$out/6_ncu.txt" 2>&1
    timeout 30 ncu --import "$out/8_kernels.ncu-rep" --page raw --csv 2>/dev/null |
        "$python" "$kit/counters.py" --summarise >>"$out/6_ncu.txt" 2>&1
fi
part benchmark 120 4_benchmark.txt "$python" "$kit/run.py" --only kernels images cases pipeline --no-record
part variants 60 3_times.txt "$python" "$kit/kernel_times.py" --skip rates pieces

# --- The most important lines of all files, for a terminal that shows only the end.
echo; echo "################ summary"
grep -h -A40 '^| what \|^B = \|^Step 3' "$out/3_times.txt" 2>/dev/null | head -64 | cut -c1-190
grep -h -A14 '^| wgmma ' "$out/3_times.txt" 2>/dev/null | cut -c1-150
grep -h '^| \(tensor\|tiled\|plain\|torch\|PyTorch\|CuPy\|pykeops\)' "$out/4_benchmark.txt" 2>/dev/null | head -16 | cut -c1-130
grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY|=== .*check: ' "$out/5_sanitizer.txt" 2>/dev/null | head -12
grep -hE 'mdmf_cross|Duration|Executed Ipc Active|Issue Slots Busy|Registers Per|Achieved Occ|Theoretical Occ|Bank conflicts|utilized pipeline|No Eligible' "$out/6_ncu.txt" 2>/dev/null | head -48 | cut -c1-150
grep -hE '^(FAILED|ERROR)|passed|failed' "$out/2_tests.txt" 2>/dev/null | tail -12 | cut -c1-220
grep -h '^FAIL' "$out"/*.txt 2>/dev/null | cut -c1-260 | head -20
grep -hE "^(PASS|FAIL) (all|open_gpu)" "$out"/[01]_*.txt 2>/dev/null | cut -c1-600
printf '%s\n' "${summary[@]}"
ls -la "$out"
echo "all: $((SECONDS - begun)) s"
