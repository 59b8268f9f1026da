// Sum of the samples' parameter gradients, always in the same order.
#pragma once

#include "scsa/call.cuh"

struct BatchSum {
    const float* gradients;  // [B][size]
    P* sums;                 // [size]
    int batch, size;
};

constexpr int kSumWarps = 8;

// A block takes as many parameters as a warp has lanes; each warp sums every eighth sample.
extern "C" __global__ void __launch_bounds__(kWarp* kSumWarps, 1)
    scsa_batch_sum(const __grid_constant__ BatchSum call) {
    float* parts = static_cast<float*>(dynamic_shared());  // [warps][lanes]
    const int parameter = blockIdx.x * kWarp + lane();
    float total = 0.0f;
    if (parameter < call.size) {
#pragma unroll 8
        for (int b = warp(); b < call.batch; b += kSumWarps)
            total += read(call.gradients + static_cast<long long>(b) * call.size + parameter);
    }
    parts[threadIdx.x] = total;
    SYNC();
    if (warp() || parameter >= call.size) return;
    for (int part = 1; part < kSumWarps; ++part) total += parts[part * kWarp + lane()];
    write(call.sums + parameter, total);
}
