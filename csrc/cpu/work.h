// How work is divided: element types, ranges, pieces of memory, and the threads of a sample.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#else  // one thread
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

#include <type_traits>

#include "dtype.h"
#include "vector_math.h"

namespace fastattn::FASTATTN_ISA {

template <class T>
struct Type {
    using type = T;
};

// f(Type<T>) for the element type of a dtype
template <class F>
inline void with_element(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float32: return f(Type<float>{});
        case DType::bfloat16: return f(Type<bf16>{});
        case DType::float16: return f(Type<fp16>{});
    }
}

struct Range {  // of channels or rows
    int begin, end;
};

// Hands out 64-byte aligned pieces of one buffer.
class Bump {
public:
    explicit Bump(float* memory) : first_(memory), next_(memory) {}
    // One whose pieces are not memory, to find out how much is needed
    static Bump measure() { return Bump(nowhere()); }

    float* take(int64_t floats) {
        float* p = next_;
        next_ += (floats + 15) / 16 * 16;
        return p;
    }
    int64_t taken() const { return next_ - first_; }
    bool measures() const { return first_ == nowhere(); }

private:
    static float* nowhere() { return reinterpret_cast<float*>(uintptr_t{64}); }
    float *first_, *next_;
};

// f(v, lanes) for v < NV, unrolled.
template <int NV, class M, class F>
inline __attribute__((always_inline)) void each(M last, F&& f) {
    if constexpr (NV > 1) f(0, Full{});
    if constexpr (NV > 2) f(1, Full{});
    if constexpr (NV > 3) f(2, Full{});
    f(NV - 1, last);
}

// The threads that work on one sample, each on its own channels.
struct Team {
    int rank, size;
    int first, step;  // thread of rank 0, and threads between ranks
    bool shared;      // some sample of this round has several threads: every thread takes part in every barrier

    int thread(int member) const { return first + member * step; }

    void sync() const {
        if (shared) {
#pragma omp barrier
        }
    }
};

// The channels of one of `size` workers, in whole cache lines while there are enough of them.
inline Range slice(int channels, int rank, int size) {
    int unit = 16;
    while (unit > 1 && channels < unit * size) unit /= 2;
    const int64_t units = (channels + unit - 1) / unit;
    const auto edge = [&](int64_t r) { return static_cast<int>(std::min<int64_t>(channels, units * r / size * unit)); };
    return {edge(rank), edge(rank + 1)};
}

// A team member's part of `count` things
inline Range part(int64_t count, Team team) {
    return {static_cast<int>(count * team.rank / team.size), static_cast<int>(count * (team.rank + 1) / team.size)};
}

// Threads worth waking for this many elements
inline int useful_threads(int64_t elements, int threads) {
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, elements / 8192)));
}

// f(sample, team): the same number of samples for every thread, then one round in which teams share the rest.
// A thread's samples are neighbours and the last comes first, as the operator before left them in that core's cache.
template <class F>
inline void for_samples(int batch, int thread, int threads, F&& f) {
    const int each = batch / threads, whole = each * threads, rest = batch - whole;
    for (int b = (thread + 1) * each - 1; b >= thread * each; --b) f(b, Team{0, 1, thread, 1, false});
    if (!rest) return;
    if (whole) {
#pragma omp barrier
    }
    const int team = thread % rest;
    f(whole + team, Team{thread / rest, (threads - team + rest - 1) / rest, team, rest, true});
}

}  // namespace fastattn::FASTATTN_ISA
