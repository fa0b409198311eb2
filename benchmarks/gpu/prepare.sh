#!/usr/bin/env bash
# Stage everything that a GPU machine without a network needs. Run this without a GPU, anywhere in a checkout:
#     bash benchmarks/gpu/prepare.sh
# Makes .whl/ (wheels for Python 3.12 on Linux x86-64) and .gpu_run/ (first_run.sh and a packed copy of the checkout) in the
# checkout's root, 14 MiB in all. Git ignores both. Carry both to the GPU machine, next to each other.
# PYTHON: the interpreter whose pip downloads the wheels (python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
python=${PYTHON:-python3}

rm -rf .whl .gpu_run
mkdir .whl .gpu_run
fetch() {
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux1_x86_64 -d .whl "$@"
}
# A machine with PyTorch and CuPy usually lacks msgspec, and its cuda-core may be older than 1.0, which names the options
# of events differently. The others are small and may be missing as well. The tests need the last three.
fetch msgspec==0.22.0 rich==15.0.0 safetensors==0.8.0 cuda-core==1.2.2 cuda-pathfinder==1.9.1 \
    pytest-xdist==3.8.0 execnet==2.1.2 filelock==4.3.1
for name in msgspec rich safetensors cuda_core cuda_pathfinder pytest_xdist execnet filelock; do
    test "$(find .whl -name "$name-*.whl" | wc -l)" = 1 || { echo "prepare.sh: no wheel of $name in .whl" >&2; exit 1; }
done

# The working tree as it is, with changes that are not committed.
git ls-files -z --cached --others --exclude-standard -- . ':!.whl' ':!.gpu_run' |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar --null --files-from=- --create --gzip --file .gpu_run/checkout.tar.gz
cp benchmarks/gpu/first_run.sh .gpu_run/
echo "staged: $(ls .whl | tr '\n' ' ')"
echo "$(du -sm --total .whl .gpu_run | tail -1 | cut -f1) MiB to carry. On the GPU machine, run: bash .gpu_run/first_run.sh"
