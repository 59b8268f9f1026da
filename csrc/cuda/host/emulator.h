// Builds the kernels with a C++ compiler: a thread of a block is a fibre, which runs until it waits for others.
// ThreadSanitizer takes each fibre for a thread, and a barrier for what orders them. Nothing here is instrumented.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "definitions.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define UNSEEN __attribute__((no_sanitize("thread"), noinline))

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif
#ifdef __SANITIZE_ADDRESS__
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
#else
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

using std::isnan;
using std::max;
using std::min;

struct uint4 {
    unsigned x, y, z, w;
};

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 17;

struct Dim {
    int x;
};

// Counts arrivals; a generation ends with the last one.
struct Barrier {
    int size = 0, count = 0;
    unsigned generation = 0;
};

struct Warp {
    Barrier barrier;
    uint32_t slots[2][kWarp];
};

// Distinct bytes of global memory, and what of it a launch may touch
struct Region {
    const char* begin;
    int64_t bytes, offset;  // of its first byte among those of all
};

struct Cluster {
    Barrier barrier;
    std::vector<struct Block*> blocks;
};

struct Block {
    int index, threads;
    Barrier barrier;
    std::vector<Warp> warps;
    std::unique_ptr<char[]> memory;  // exactly what was asked for, so that AddressSanitizer sees what is beyond
    size_t shared_bytes;
    Cluster* cluster;
    std::unique_ptr<unsigned char[]> touched[2];  // read and written bytes of the regions: how often, up to 255 times
};

struct Copy {
    void* to;
    const void* from;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void* fiber;
    Block* block;
    Dim index;
    std::vector<Copy> copies;  // under way
    bool done = false;
    const unsigned* awaited = nullptr;  // the generation that it waits to end
    unsigned generation = 0, cluster_generation = 0, shuffles = 0;
};

inline Thread* current;
inline ucontext_t scheduler;
inline void* scheduler_fiber;
inline const void* scheduler_stack;  // its lowest address, for AddressSanitizer
inline size_t scheduler_bytes;
inline int blocks_of_grid;
inline int started, finished;  // addresses for what a launch finds, and leaves behind
inline std::vector<Region> regions;
inline int64_t region_bytes;
inline std::string error;
inline int64_t traffic[2];     // bytes read and written by the last launch
inline std::vector<int> most;  // by region: how often a block read, or wrote, a byte of it

UNSEEN inline void fail(const std::string& message) {
    if (error.empty()) error = message;
}

UNSEEN inline void yield() {
    Thread* self = current;
    void* fake = nullptr;
    __tsan_switch_to_fiber(scheduler_fiber, 1);
    __sanitizer_start_switch_fiber(self->done ? nullptr : &fake, scheduler_stack, scheduler_bytes);
    swapcontext(&self->context, &scheduler);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_bytes);
}

UNSEEN inline void resume(Thread& thread) {
    void* fake = nullptr;
    current = &thread;
    __tsan_switch_to_fiber(thread.fiber, 1);
    __sanitizer_start_switch_fiber(&fake, thread.stack.get(), kStack);
    swapcontext(&scheduler, &thread.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

UNSEEN inline unsigned arrive(Barrier& barrier, bool orders) {
    const unsigned generation = barrier.generation;
    if (orders) __tsan_release(&barrier);
    if (++barrier.count == barrier.size) barrier.count = 0, ++barrier.generation;
    return generation;
}

UNSEEN inline void wait(Barrier& barrier, unsigned generation, bool orders) {
    if (barrier.generation == generation) {
        current->awaited = &barrier.generation;
        current->generation = generation;
        yield();
    }
    if (orders) __tsan_acquire(&barrier);
}

UNSEEN inline void sync_threads() {
    Barrier& barrier = current->block->barrier;
    wait(barrier, arrive(barrier, true), true);
}

UNSEEN inline uint32_t shuffle(uint32_t value, int other) {
    Thread& self = *current;
    Warp& warp = self.block->warps[self.index.x / kWarp];
    uint32_t* slots = warp.slots[self.shuffles++ & 1];
    slots[self.index.x % kWarp] = value;
    wait(warp.barrier, arrive(warp.barrier, false), false);
    return slots[other % kWarp];
}

template <class T>
inline T shuffle_as(T value, int other) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = shuffle(bits, other);
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::Dim{emulator::current->block->index})
#define gridDim (emulator::Dim{emulator::blocks_of_grid})
#define THREADS (emulator::current->block->threads)
// barrier number WITHOUT of a source, from 1 on, is left out
#define KEPT (__COUNTER__ + 1 != WITHOUT)
#define SYNC() (KEPT ? emulator::sync_threads() : void())
#define TEAM_WAIT(team) (KEPT ? (team).wait() : void())
#define __syncthreads emulator::sync_threads

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::shuffle_as(value, (threadIdx.x % emulator::kWarp) ^ mask);
}
template <class T>
inline T __shfl_down_sync(unsigned, T value, int distance) {
    return emulator::shuffle_as(value, threadIdx.x % emulator::kWarp + distance);
}

inline void* dynamic_shared() { return emulator::current->block->memory.get(); }

UNSEEN inline void touch(const void* address, int bytes, bool write) {
    using namespace emulator;
    const char* p = static_cast<const char*>(address);
    Block& block = *current->block;
    for (Block* other : block.cluster->blocks)
        if (p >= other->memory.get() && p + bytes <= other->memory.get() + other->shared_bytes) return;
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("a misaligned access of " + std::to_string(bytes) + " bytes");
    for (size_t i = 0; i < regions.size(); ++i)
        if (p >= regions[i].begin && p + bytes <= regions[i].begin + regions[i].bytes) {
            unsigned char* times = block.touched[write].get() + regions[i].offset + (p - regions[i].begin);
            for (; bytes--; ++times) *times += *times < 255;
            return;
        }
    if (!regions.empty()) fail("an access beyond what the launch was given");
}
inline void pause() { emulator::yield(); }

// Done when they are waited for, and not before
inline void copy_async(void* to, const void* from) {
    touch(from, 16, false);
    emulator::current->copies.push_back({to, from});
}
inline void copy_wait() {
    for (const emulator::Copy& copy : emulator::current->copies) std::memcpy(copy.to, copy.from, 16);
    emulator::current->copies.clear();
}

UNSEEN inline void cluster_arrive() {
    emulator::Thread& self = *emulator::current;
    self.cluster_generation = emulator::arrive(self.block->cluster->barrier, true);
}
UNSEEN inline void cluster_wait() {
    emulator::Thread& self = *emulator::current;
    emulator::wait(self.block->cluster->barrier, self.cluster_generation, true);
}
UNSEEN inline void* shared_of(void* mine, int rank) {
    const emulator::Block& block = *emulator::current->block;
    return block.cluster->blocks[rank]->memory.get() + (static_cast<char*>(mine) - block.memory.get());
}

inline void add_release(unsigned* counter) { __atomic_fetch_add(counter, 1u, __ATOMIC_RELEASE); }
inline unsigned load_acquire(const unsigned* counter) { return __atomic_load_n(counter, __ATOMIC_ACQUIRE); }

struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

inline uint32_t bits_of(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}
inline float of_bits(uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
inline float to_float(float v) { return v; }
inline float to_float(Bf16 v) { return of_bits(uint32_t{v.bits} << 16); }
inline float to_float(F16 v) {
    const uint32_t sign = uint32_t{v.bits & 0x8000u} << 16, exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
    if (exponent == 0) return of_bits(sign | bits_of(fraction * 0x1p-24f));
    return of_bits(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
}
inline void from_float(float v, float& out) { out = v; }
inline void from_float(float v, Bf16& out) {
    const uint32_t bits = bits_of(v);
    out.bits = static_cast<uint16_t>(v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff);
}
inline void from_float(float v, F16& out) {
    const uint32_t sign = bits_of(v) >> 16 & 0x8000;
    const float size = std::fabs(v);
    uint32_t bits;
    if (!(v == v)) bits = 0x7fff;
    else if (size >= 65520.0f) bits = 0x7c00;
    else if (size < 0x1p-14f) bits = static_cast<uint32_t>(std::nearbyint(size * 0x1p24f));  // subnormal
    else {
        const uint32_t wide = bits_of(size) - (112u << 23);
        bits = (wide + 0xfff + (wide >> 13 & 1)) >> 13;
    }
    out.bits = static_cast<uint16_t>(sign | bits);
}

namespace emulator {

using Run = void (*)(const void*);
inline Run kernel;
inline const void* arguments;

// Where a cluster shares memory: a block that ended has none any more, whoever reads it still.
inline void leave_memory() {
    Block& block = *current->block;
    if (block.cluster->blocks.size() == 1) return;
    for (size_t i = current->index.x; i < block.shared_bytes; i += block.threads) block.memory[i] = -1;
}

UNSEEN inline void enter() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes);
    __tsan_acquire(&started);
    kernel(arguments);
    leave_memory();
    current->done = true;
    __tsan_release(&finished);
    yield();
}

// Run the fibres in turns until all are done; false if all wait for one another.
UNSEEN inline bool schedule(std::vector<Thread>& threads) {
    size_t done = 0;
    for (int idle = 0; done < threads.size(); ++idle) {
        if (idle > 10000) return false;
        done = 0;
        for (Thread& thread : threads) {
            if (thread.done) ++done;
            else if (!thread.awaited || *thread.awaited != thread.generation) {
                if (thread.awaited) idle = 0;
                thread.awaited = nullptr;
                resume(thread);
            }
        }
    }
    __tsan_acquire(&finished);
    return true;
}

UNSEEN inline void count(const Block& block) {
    for (int write = 0; write < 2; ++write)
        for (size_t i = 0; i < regions.size(); ++i)
            for (int64_t k = 0; k < regions[i].bytes; ++k) {
                const int times = block.touched[write][regions[i].offset + k];
                traffic[write] += times > 0;
                most[i] = max(most[i], times);
            }
}

// Run `group` blocks from `first` on together, in clusters.
UNSEEN inline void run_blocks(int first, int group, int threads, int cluster, int shared_bytes) {
    std::vector<Cluster> clusters(group / cluster);
    std::vector<Block> blocks(group);
    std::vector<Thread> fibres(group * threads);
    for (int b = 0; b < group; ++b) {
        Block& block = blocks[b];
        block.index = first + b;
        block.threads = block.barrier.size = threads;
        block.warps.resize(threads / kWarp);
        for (Warp& warp : block.warps) warp.barrier.size = kWarp;
        block.memory.reset(new char[shared_bytes + 1]);
        std::memset(block.memory.get(), 0xff, shared_bytes);  // NaN
        block.shared_bytes = shared_bytes;
        for (auto& touched : block.touched) touched.reset(new unsigned char[region_bytes]());
        block.cluster = &clusters[b / cluster];
        block.cluster->blocks.push_back(&block);
        block.cluster->barrier.size += threads;
        for (int i = 0; i < threads; ++i) {
            Thread& thread = fibres[b * threads + i];
            thread.block = &block;
            thread.index.x = i;
            thread.stack.reset(new char[kStack]);
            thread.fiber = __tsan_create_fiber(0);
            getcontext(&thread.context);
            thread.context.uc_stack = {thread.stack.get(), 0, kStack};
            thread.context.uc_link = nullptr;
            makecontext(&thread.context, enter, 0);
        }
    }
    __tsan_release(&started);
    if (!schedule(fibres)) fail("the threads wait for one another");
    for (const Block& block : blocks) count(block);
    for (Thread& thread : fibres) __tsan_destroy_fiber(thread.fiber);
}

// Run a grid; what must be there together runs together. Returns an error or an empty string.
UNSEEN inline const char* launch(Run run, const void* given, int grid, int threads, int cluster, int shared_bytes,
                                 bool cooperative) {
    kernel = run;
    arguments = given;
    blocks_of_grid = grid;
    scheduler_fiber = __tsan_get_current_fiber();
    traffic[0] = traffic[1] = 0;
    most.assign(regions.size(), 0);
    error.clear();
    const int group = cooperative ? grid : cluster;
    for (int first = 0; first < grid && error.empty(); first += group)
        run_blocks(first, group, threads, cluster, shared_bytes);
    return error.c_str();
}

}  // namespace emulator

extern "C" {
inline __attribute__((used)) int define(const char* name, int value) { return emulator::define(name, value); }
inline __attribute__((used)) void set_regions(int count, const char* const* begin, const int64_t* bytes) {
    emulator::regions.clear();
    emulator::region_bytes = 0;
    for (int i = 0; i < count; ++i) {
        emulator::regions.push_back({begin[i], bytes[i], emulator::region_bytes});
        emulator::region_bytes += bytes[i];
    }
}
inline __attribute__((used)) int most_touched(int region) { return emulator::most[region]; }
inline __attribute__((used)) int64_t bytes_touched() { return emulator::traffic[0] + emulator::traffic[1]; }
}

#define EMULATED(name, Arguments)                                                                                   \
    extern "C" int barriers_##name() { return __COUNTER__; }                                                        \
    extern "C" const char* launch_##name(const void* arguments, int grid, int block, int cluster, int shared_bytes, \
                                         int cooperative) {                                                         \
        return emulator::launch([](const void* given) { name(*static_cast<const Arguments*>(given)); }, arguments,  \
                                grid, block, cluster, shared_bytes, cooperative);                                   \
    }
