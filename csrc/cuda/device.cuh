// What the kernels need of the machine, without a header of CUDA's: NVRTC finds none by itself.
#pragma once

#ifdef FASTATTN_EMULATOR
#include "host/emulator.h"
#else

// Barriers have names of their own, as the emulator leaves out one at a time.
#define SYNC() __syncthreads()
#define TEAM_WAIT(team) (team).wait()
#define EMULATED(kernel, Arguments)
#define INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ void* dynamic_shared() {
    extern __shared__ uint4 dynamic_memory[];
    return dynamic_memory;
}

// Of global memory, which the emulator counts and checks
__device__ __forceinline__ void touch(const void*, int, bool) {}
__device__ __forceinline__ void pause() {}

// 16 bytes to shared memory, past registers; they are there for this thread after copy_wait
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    unsigned long long shared;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(shared) : "l"(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(shared)), "l"(from)
                 : "memory");
}
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Where another block of the cluster has what this one has at an address of its shared memory
__device__ __forceinline__ void* shared_of(void* mine, int rank) {
    unsigned long long address = reinterpret_cast<unsigned long long>(mine);
#if __CUDA_ARCH__ >= 900
    asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(address), "r"(rank));
#endif
    return reinterpret_cast<void*>(address);
}

__device__ __forceinline__ void add_release(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

struct Bf16 {
    unsigned short bits;
};
struct F16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Bf16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
__device__ __forceinline__ float to_float(F16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}
__device__ __forceinline__ void from_float(float v, float& out) { out = v; }
__device__ __forceinline__ void from_float(float v, Bf16& out) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
}
__device__ __forceinline__ void from_float(float v, F16& out) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
}

#endif
