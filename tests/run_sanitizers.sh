#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer into a copy of the package, and runs the
# native tests on it. PYTHON: an interpreter with torch and the test requirements; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
tools=$(dirname "$python")
build=build/sanitize
tree=$build/tree

PATH=$tools:$PATH cmake -S csrc -B "$build/native" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -fno-sanitize-recover=all" -DFASTATTN_SANITIZE=address,undefined \
    -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
PATH=$tools:$PATH cmake --build "$build/native"

rm -rf "$tree"
mkdir -p "$tree"
cp -r benchmarks fastattn tests conftest.py pyproject.toml "$tree"
rm -f "$tree"/fastattn/_native*
cp "$build"/native/_native*.so "$tree/fastattn"

cd "$tree"
compiler=${CXX:-c++}
export LD_PRELOAD="$($compiler -print-file-name=libasan.so):$($compiler -print-file-name=libubsan.so):$($compiler -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 FASTATTN_REQUIRE_NATIVE=1
# AddressSanitizer holds back freed memory, so the one test that watches the memory in use would see growth
"$python" -m pytest -q --full -p no:cacheprovider tests/*/test_native.py tests/core/test_goldens.py \
    --deselect tests/core/test_native.py::test_a_thousand_calls_do_not_grow "$@"
