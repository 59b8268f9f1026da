#!/usr/bin/env bash
# Builds the extension with sanitizers into a copy of the package, and runs it there.
#   run_sanitizers.sh [address]   AddressSanitizer and UndefinedBehaviorSanitizer over the native tests and the fuzzer
#   run_sanitizers.sh thread      ThreadSanitizer over threads that share samples: see tests/sanitize/team.cpp
# and either over SCSA's CUDA kernels, built for the CPU.
# PYTHON: an interpreter with torch and the test requirements; in the first mode further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=address
case ${1:-} in address | thread) mode=$1 && shift ;; esac
python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
compiler=${CXX:-c++}
build=$PWD/build/sanitize/$mode
tree=$build/tree
mkdir -p "$build"

sanitizers=address,undefined libraries="asan ubsan stdc++" linked=
if [ "$mode" = thread ]; then
    sanitizers=thread libraries="tsan stdc++" linked=$build/team.o
    "$compiler" -std=c++17 -O1 -g -fPIC -fsanitize=thread -fvisibility=hidden -c tests/sanitize/team.cpp -o "$linked"
    rm -f "$build"/native/_native*.so # to be linked with it anew
fi

export PATH=$(dirname "$python"):$PATH
cmake -S csrc -B "$build/native" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_MODULE_LINKER_FLAGS="$linked" \
    -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1 -fno-sanitize-recover=undefined" -DFASTATTN_SANITIZE=$sanitizers \
    -DPython_EXECUTABLE="$python"
cmake --build "$build/native"

rm -rf "$tree"
mkdir -p "$tree"
cp -r benchmarks csrc fastattn tests conftest.py pyproject.toml "$tree"
rm -rf "$tree"/fastattn/_native* "$tree/fastattn/kernels" # may be a link out of the package
cp -r kernels "$tree/fastattn"
cp "$build"/native/_native*.so "$tree/fastattn"

cd "$tree"
for library in $libraries; do
    preload=${preload:+$preload:}$("$compiler" -print-file-name="lib$library.so")
done
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    FASTATTN_REQUIRE_NATIVE=1
run() { LD_PRELOAD=$preload "$python" "$@"; }

if [ "$mode" = thread ]; then
    run -m tests.sanitize.team
    FASTATTN_SANITIZE=thread run -m pytest -q -p no:cacheprovider tests/scsa/test_cuda.py
    exit
fi
FASTATTN_SANITIZE=address run -m pytest -q --full -p no:cacheprovider tests/scsa/test_cuda.py -k "not barrier"
# AddressSanitizer holds back freed memory, so the one test that watches the memory in use would see growth
run -m pytest -q --full -p no:cacheprovider tests/*/test_native.py tests/core/test_goldens.py \
    --deselect tests/core/test_native.py::test_a_thousand_calls_do_not_grow "$@"
run -m tests.fuzz --seconds "${FASTATTN_FUZZ_SECONDS:-60}" --seed 7
