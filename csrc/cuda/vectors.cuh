// Global memory, 16 bytes at a time where it is aligned, and sums over warps.
#pragma once

#include "device.cuh"

constexpr int kWarp = 32;

template <class T>
__device__ __forceinline__ float read(const T* p) {
    touch(p, sizeof(T), false);
    return to_float(*p);
}

template <class T>
__device__ __forceinline__ void write(T* p, float v) {
    touch(p, sizeof(T), true);
    from_float(v, *p);
}

// As many elements as 16 bytes hold
template <class T>
struct Pack {
    static constexpr int kCount = 16 / sizeof(T);
    union {
        uint4 whole;
        T part[kCount];
    };
};

template <class T>
__device__ __forceinline__ void write_pack(T* p, const Pack<T>& pack) {
    touch(p, 16, true);
    *reinterpret_cast<uint4*>(p) = pack.whole;
}

// whole(i) for every 16 aligned bytes, from element i on, of the run that begins at p, single(i) for what is left over:
// everything without WIDE
template <class T, class Whole, class Single>
__device__ __forceinline__ void for_run(const T* p, int count, Whole whole, Single single) {
    constexpr int kCount = Pack<T>::kCount;
    const int beyond = static_cast<int>(reinterpret_cast<unsigned long long>(p) % 16 / sizeof(T));
    const int lead = WIDE ? (kCount - beyond) % kCount : count;
    const int packs = lead < count ? (count - lead) / kCount : 0;
    for (int i = threadIdx.x; i < packs; i += THREADS) whole(lead + i * kCount);
    for (int i = threadIdx.x; i < count - packs * kCount; i += THREADS) single(i < lead ? i : i + packs * kCount);
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int mask = kWarp / 2; mask; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int mask = kWarp / 2; mask; mask /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

__device__ __forceinline__ int warp() { return threadIdx.x / kWarp; }
__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warps() { return THREADS / kWarp; }

// Sum of term(i) over i < count by the lanes of a warp, known to all of them
template <class Term>
__device__ __forceinline__ float warp_sum_of(int count, Term term) {
    float total = 0.0f;
    for (int i = lane(); i < count; i += kWarp) total += term(i);
    return warp_sum(total);
}

__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// Shared memory, piece by piece; fastattn/scsa/cuda.py adds up the same ones
struct Memory {
    char* next;

    template <class T>
    __device__ T* take(int count) {
        T* piece = reinterpret_cast<T*>(next);
        next += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
        return piece;
    }
};
