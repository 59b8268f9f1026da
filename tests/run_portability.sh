#!/usr/bin/env bash
# Compiles the C++ for other systems with Clang, as the package ziglang has it, without running it: macOS on ARM, Windows
# (by MinGW's headers), and Linux; without OpenMP, which is optional, and for the C API of Python in PYTHON's headers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
flags=(-std=gnu++17 -O0 -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-psabi -fno-math-errno)
object=$(mktemp -d)
trap 'rm -rf "$object"' EXIT

compile() { # TARGET FILE FLAG...
    "$python" -m ziglang c++ -target "$1" "${flags[@]}" "${@:3}" -c "$2" -o "$object/$(basename "$2").o"
}

for target in aarch64-macos x86_64-windows-gnu x86_64-linux-gnu; do
    levels="baseline avx2 avx512"
    case $target in aarch64-*) levels="baseline neon" ;; esac
    for file in csrc/cpu/*.cpp csrc/cpu/*/plan.cpp; do compile "$target" "$file"; done
    for level in $levels; do
        case $level in
            avx2) more="-mavx2 -mfma -mf16c" ;;
            avx512) more="-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl" ;;
            neon) more=-DFASTATTN_NEON ;;
            *) more= ;;
        esac
        for file in csrc/cpu/*/forward.cpp csrc/cpu/*/backward.cpp; do
            compile "$target" "$file" -DFASTATTN_ISA=$level $more
        done
    done
    [[ $target == *windows* ]] || compile "$target" csrc/bindings.cpp -DPy_LIMITED_API=0x030B0000 -isystem "$include"
    echo "$target: compiles"
done
