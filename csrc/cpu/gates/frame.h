// The memory and the threads of one call of a gate.
#pragma once

#include "../args.h"
#include "../workspace.h"
#include "space.h"
#include "strips.h"

namespace fastattn::FASTATTN_ISA {

// Buffers of one thread
struct OwnMemory {
    float* steps;
    AxesScratch axes;
    float* padded;  // two maps
    void* sample;   // one whose channels are not interleaved yet, or no longer

    OwnMemory(const GatesPlan& plan, const Layout& layout, Bump& bump)
        : steps(bump.take(Steps::scratch(plan))),
          axes(layout, bump),
          padded(plan.product == Product::space ? bump.take(Padded::floats(plan, 2)) : nullptr),
          sample(plan.product == Product::shuffled && plan.channels_last ? bump.take(plan.sample()) : nullptr) {}
};

// Buffers of a call, those of a sample side by side. What forward keeps lies in `saved` if there is one.
struct CallMemory {
    GateParams params;
    Levels levels;
    float* maps = nullptr;   // [sample][2][pixel]: mean and maximum over the channels
    float* gates = nullptr;  // [sample][pixel]
    float* statistics;       // null: of no use
    std::vector<OwnMemory> own;

    CallMemory(const GatesPlan& plan, const Layout& layout, float* saved, int threads, Bump& bump)
        : params(plan, bump),
          levels(plan, bump),
          statistics(saved ? saved + plan.saved_size() - plan.statistics() : nullptr) {
        const int64_t count = plan.batch * plan.pixels();
        if (plan.product == Product::space) maps = bump.take(2 * count), gates = bump.take(count);
        if (saved && !bump.measures()) {
            levels.values[0].data = saved;
            if (maps) maps = saved + plan.batch * plan.columns() * plan.stride();
        }
        for (int i = 0; i < threads; ++i) own.emplace_back(plan, layout, bump);
    }
};

// One thread's steps, each over its samples or, of a normalisation by the batch, the first thread's over all:
// f(stage, first sample, last)
template <class F>
void all_steps(const GatesPlan& plan, bool reversed, int thread, int threads, F&& f) {
    const int count = static_cast<int>(plan.stages.size());
    for (int i = 0; i < count; ++i) {
        const int stage = reversed ? count - 1 - i : i;
        if (plan.stages[stage].step == Step::batch_norm_of_batch) {
#pragma omp barrier
            if (!thread) f(stage, 0, plan.batch);
#pragma omp barrier
        } else {
            f(stage, plan.batch * thread / threads, plan.batch * (thread + 1) / threads);
        }
    }
}

// The pixels of a sample whose channels' halves are interleaved, from or to those whose halves follow one another
template <bool interleave, class T>
void shuffle_pixels(const Layout& s, Range pixels, const T* from, T* to) {
    const int half = s.channels / 2;
    for (int p = pixels.begin; p < pixels.end; ++p) {
        const T* in = from + int64_t{p} * s.channels;
        T* out = to + int64_t{p} * s.channels;
        for (int i = 0; i < half; ++i) {
            if constexpr (interleave) out[2 * i] = in[i], out[2 * i + 1] = in[half + i];
            else out[i] = in[2 * i], out[half + i] = in[2 * i + 1];
        }
    }
}

inline Layout layout_of(const GatesPlan& plan) { return {plan.channels, plan.height, plan.width, plan.channels_last}; }

// d = x - mean -> q d^2 + a d + b
inline V quadratic(V d, V q, V a, V b) { return (q * d + a) * d + b; }

}  // namespace fastattn::FASTATTN_ISA
