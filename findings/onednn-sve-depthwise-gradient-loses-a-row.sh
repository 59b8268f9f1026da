#!/usr/bin/env bash
# PyTorch 2.10 on ARM with SVE trains strided depthwise convolutions with a wrong gradient of their weights, and says nothing.
#
# A depthwise 3x3 convolution with stride 2 and padding 1 of an even map, as each stage of a MobileNet begins. Expected:
# the weight's float32 gradient agrees with float64's to some 1e-7. Seen with torch 2.10.0+cpu for aarch64, whose oneDNN
# says that it is 3.7.1: of a 14 x 14 map the last row of every 3x3 gradient lacks a part, 18% of the whole by norm; also
# with stride 3. It is right for an odd map, for stride 1 and 4, for 5x5, for channels_last, where the padding is added
# by itself before, and with oneDNN off. ONEDNN_VERBOSE names the kernel, jit_dw:sve_256, which processors take whose
# vectors have 256 bits and more (Neoverse V1, A64FX); without SVE (Neoverse N1) another one is taken, and is right.
# oneDNN's issue 4124 has it, from a Neoverse V1 and of 3.9.1 as well, and its pull request 4081 mends it.
#
# Runs with Python 3.11 on ARM with SVE of 256 bits or more, or elsewhere under Debian's qemu-user with an ARM Python
# unpacked from Debian 12's packages. Fails if the gradient agrees.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python=(python3.11)
if [ "$(uname -m)" != aarch64 ]; then
    mkdir -p packages lists/partial
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$folder/lists")
    "${apt[@]}" update >/dev/null || true # sources without packages for ARM
    (cd packages && "${apt[@]}" download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 \
        libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 >/dev/null)
    for package in packages/*.deb; do dpkg-deb -x "$package" root; done
    export QEMU_LD_PREFIX=$folder/root
    python=(qemu-aarch64 -cpu max root/usr/bin/python3.11)
fi
python3 -m pip install -q --target site --python-version 3.11 --implementation cp --only-binary :all: --no-deps \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    torch==2.10.0 numpy==2.3.5 filelock==3.20.0 typing-extensions==4.15.0 sympy==1.14.0 mpmath==1.3.0 networkx==3.5 \
    jinja2==3.1.6 markupsafe==3.0.3 fsspec==2025.10.0
PYTHONPATH=site OMP_NUM_THREADS=1 "${python[@]}" - <<'PYTHON'
import torch
import torch.nn.functional as F


def weight_gradient(dtype, size, stride, kernel=3, onednn=True, channels_last=False, before=False):
    generator, padding = torch.Generator().manual_seed(0), kernel // 2
    x = torch.randn(2, 24, size, size, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randn(24, 1, kernel, kernel, generator=generator).to(dtype).requires_grad_()
    if before:
        x, padding = F.pad(x, (padding,) * 4), 0
    with torch.backends.mkldnn.flags(enabled=onednn, allow_tf32=None):
        out = F.conv2d(x, weight, None, stride, padding, groups=24)
        grad_out = torch.randn(out.shape, generator=generator).to(dtype)
        return torch.autograd.grad(out, [weight], grad_out)[0]


print("torch", torch.__version__)
wrong = [{"size": 14, "stride": 2}, {"size": 14, "stride": 3}]
right = [{**wrong[0], **change} for change in ({"onednn": False}, {"channels_last": True}, {"before": True})]
right += [{"size": 15, "stride": 2}, {"size": 14, "stride": 1}, {"size": 14, "stride": 4}]
right += [{"size": 14, "stride": 2, "kernel": 5}]
for case in wrong + right:
    exact = weight_gradient(torch.float64, case["size"], case["stride"], case.get("kernel", 3))
    apart = weight_gradient(torch.float32, **case).double() - exact
    error, rows = float(apart.norm() / exact.norm()), apart.abs().amax((0, 1, 3))
    print(*(f"{name} {value}" for name, value in case.items()), f"error {error:.1e}", f"by row {rows.tolist()}", sep=", ")
    if case in right:
        assert error < 1e-5, "more is wrong than was"
    else:
        assert error > 0.1, "the gradient agrees: this has changed"
        assert float(rows[:2].max()) < 1e-4, "other rows are wrong than were"
PYTHON
