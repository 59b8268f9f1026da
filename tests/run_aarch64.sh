#!/usr/bin/env bash
# Runs tests of the ARM wheel in dist/ (make dist) under qemu-user, with an ARM Python of Debian's and torch for ARM in
# build/aarch64. Needs Debian's qemu-user; arguments go to pytest, instead of the tests that are listed below.
# torch 2.10 is the last one for ARM whose wheel does not want CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
build=$PWD/build/aarch64
root=$build/root site=$build/site tree=$build/tree
if [ $# = 0 ]; then
    set -- tests/core/test_reference.py tests/core/test_goldens.py tests/core/test_threads.py tests/scsa/test_native.py \
        tests/lga/test_native.py tests/interaction/test_native.py tests/zoo/test_native.py
fi

if ! [ -d "$root" ]; then
    mkdir -p "$build/packages" "$build/lists/partial"
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$build/lists")
    "${apt[@]}" update || true # sources without packages for ARM
    (cd "$build/packages" && "${apt[@]}" download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 \
        libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1)
    for package in "$build"/packages/*.deb; do dpkg-deb -x "$package" "$root.partial"; done
    mv "$root.partial" "$root"
fi
pip=("$python" -m pip install --quiet --target "$site" --python-version 3.11 --implementation cp --only-binary :all:
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64
    --platform manylinux2014_aarch64)
if ! [ -d "$site" ]; then
    "${pip[@]}" "torch==2.10.*" setuptools numpy pytest hypothesis safetensors
fi
"${pip[@]}" --no-deps --upgrade dist/fastattn-*_aarch64.whl

rm -rf "$tree"
mkdir -p "$tree"
cp -r tests benchmarks conftest.py pyproject.toml "$tree"
cd "$tree"
export QEMU_LD_PREFIX=$root PYTHONPATH=$site FASTATTN_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1
qemu-aarch64 "$root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider "$@"
