// Parameters of convolutions in the arrangements that the passes read, and their gradients in those in which they are
// made.
#pragma once

#include <vector>

#include "maps.h"

namespace fastattn::FASTATTN_ISA {

// A depthwise convolution: taps and bias, one block of channels after another
struct DepthwiseParams {
    int kernel;
    float* taps;     // [block][kernel * kernel][L]
    float* flipped;  // the same in reverse, for backward; else null
    float* bias;     // [block][L]

    int64_t block() const { return int64_t{kernel} * kernel * L; }

    static DepthwiseParams take(Bump& bump, int channels, int kernel, bool backward) {
        const int64_t size = int64_t{kernel} * kernel * padded(channels);
        float *taps = bump.take(size), *flipped = backward ? bump.take(size) : nullptr;
        return {kernel, taps, flipped, bump.take(padded(channels))};
    }
};

// A 1x1 convolution between maps
struct PointwiseParams {
    float* weights;     // [block of outputs][input][L]
    float* transposed;  // [block of inputs][output][L], for backward; else null
    float* bias;        // [block of outputs][L]

    static PointwiseParams take(Bump& bump, int inputs, int outputs, bool backward) {
        float *weights = bump.take(padded(outputs) * inputs),
              *transposed = backward ? bump.take(padded(inputs) * outputs) : nullptr;
        return {weights, transposed, bump.take(padded(outputs))};
    }
};

// One thread's part of reading a call's parameters, which it takes in turns with the others
template <class T>
class Reader {
public:
    Reader(const void* const* tensors, int thread, int threads)
        : tensors_(tensors),
          thread_(thread),
          threads_(threads) {}

    const T* next() { return static_cast<const T*>(*tensors_++); }
    bool mine() { return item_++ % threads_ == thread_; }

    void depthwise(const DepthwiseParams& p, int channels) {
        by_lanes(next(), channels, p.kernel * p.kernel, p.taps, p.flipped);
        vector(next(), channels, p.bias);
    }

    void pointwise(const PointwiseParams& p, int inputs, int outputs) {
        matrix(next(), inputs, p, inputs, outputs);
        vector(next(), outputs, p.bias);
    }

    // [channel][count] -> [block][count][L], and in reverse
    void by_lanes(const T* from, int channels, int count, float* to, float* reversed) {
        for (int b = 0; b < blocks(channels); ++b) {
            if (!mine()) continue;
            for (int i = 0; i < L; ++i)
                for (int t = 0; t < count; ++t) {
                    const int c = b * L + i;
                    const float value = c < channels ? load_one(from + int64_t{c} * count + t) : 0.0f;
                    to[(int64_t{b} * count + t) * L + i] = value;
                    if (reversed) reversed[(int64_t{b} * count + count - 1 - t) * L + i] = value;
                }
        }
    }

    void vector(const T* from, int channels, float* to) {
        if (mine())
            for (int c = 0; c < padded(channels); ++c) to[c] = c < channels ? load_one(from + c) : 0.0f;
    }

    // rows [output] of `stride` elements
    void matrix(const T* from, int64_t stride, const PointwiseParams& p, int inputs, int outputs) {
        for (int b = 0; b < blocks(outputs); ++b) {
            if (!mine()) continue;
            const int n = std::min(L, outputs - b * L);
            for (int c = 0; c < inputs; c += L) {
                const int count = std::min(L, inputs - c);
                V r[L] = {};
                for (int i = 0; i < n; ++i) {
                    const T* row = from + (b * L + i) * stride + c;
                    r[i] = count == L ? load(row, Full{}) : load(row, Tail(count));
                }
                transpose(r);
                for (int i = 0; i < count; ++i) store(p.weights + (int64_t{b} * inputs + c + i) * L, r[i]);
            }
        }
        if (!p.transposed) return;
        for (int b = 0; b < blocks(inputs); ++b) {
            if (!mine()) continue;
            const int n = std::min(L, inputs - b * L);
            for (int o = 0; o < outputs; ++o) {
                const T* row = from + o * stride + b * L;
                store(p.transposed + (int64_t{b} * outputs + o) * L, n == L ? load(row, Full{}) : load(row, Tail(n)));
            }
        }
    }

private:
    const void* const* tensors_;
    int thread_, threads_;
    int item_ = 0;
};

struct DepthwiseGradients {
    int kernel;
    float* taps;   // [block][kernel * kernel][L]
    double* bias;  // [channel]

    float* at(int b) const { return taps + int64_t{b} * kernel * kernel * L; }
};

struct PointwiseGradients {
    float* weights;  // [output][padded inputs]
    double* bias;    // [output]
};

// Places for the sums of one thread: float, and double behind them
class Sums {
public:
    Sums(Bump floats, Bump doubles) : floats_(floats), doubles_(doubles) {}
    static Sums measure() { return {Bump::measure(), Bump::measure()}; }

    float* floats(int64_t count) { return floats_.take(count); }
    double* doubles(int64_t count) { return reinterpret_cast<double*>(doubles_.take(2 * count)); }
    int64_t float_count() const { return floats_.taken(); }
    int64_t double_count() const { return doubles_.taken() / 2; }

    DepthwiseGradients depthwise(int channels, int kernel) {
        float* taps = floats(int64_t{kernel} * kernel * padded(channels));
        return {kernel, taps, doubles(padded(channels))};
    }
    PointwiseGradients pointwise(int inputs, int outputs) {
        float* weights = floats(outputs * padded(inputs));
        return {weights, doubles(padded(outputs))};
    }

private:
    Bump floats_, doubles_;
};

// The sums of all threads, each in memory of its own, all arranged alike: of one operation's Gradients, which has
// `arrange(plan, Sums&)`
template <class Gradients, class Plan>
class ThreadSums {
public:
    static int64_t size(const Plan& plan) {
        const Sums sums = sizes(plan);
        return round_up(sums.float_count() + 2 * sums.double_count(), 16);
    }

    // In memory of `threads` times `size` floats
    ThreadSums(const Plan& plan, float* memory, int threads) : sizes_(sizes(plan)), memory_(memory), size_(size(plan)) {
        for (int i = 0; i < threads; ++i) {
            Sums sums(Bump(at(i)), Bump(at(i) + sizes_.float_count()));
            all_.emplace_back().arrange(plan, sums);
        }
    }

    const Gradients& of(int thread) const { return all_[thread]; }
    void clear(int thread) const { std::fill(at(thread), at(thread) + size_, 0.0f); }

    // This thread's part of: the first's sums = those of all threads. A barrier before and behind.
    void add(int thread, int threads) const {
        const auto sum = [&](auto&& of, int64_t count) {
            const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
            for (int other = 1; other < threads; ++other)
                for (int64_t i = begin; i < end; ++i) of(0)[i] += of(other)[i];
        };
        sum([&](int i) { return at(i); }, sizes_.float_count());
        sum([&](int i) { return reinterpret_cast<double*>(at(i) + sizes_.float_count()); }, sizes_.double_count());
    }

private:
    static Sums sizes(const Plan& plan) {
        Sums sums = Sums::measure();
        Gradients().arrange(plan, sums);
        return sums;
    }
    float* at(int thread) const { return memory_ + thread * size_; }

    const Sums sizes_;
    float* memory_;
    int64_t size_;
    std::vector<Gradients> all_;
};

// One thread's part of writing the parameters' gradients, which it takes in turns with the others
class Writer {
public:
    Writer(void* const* tensors, int thread, int threads) : tensors_(tensors), thread_(thread), threads_(threads) {}

    // f(tensor)
    template <class F>
    void next(F&& f) {
        if (item_++ % threads_ == thread_) f(static_cast<float*>(*tensors_));
        ++tensors_;
    }
    void copy(const double* from, int64_t count) {
        next([&](float* to) { std::copy(from, from + count, to); });
    }
    void by_channels(const float* from, int channels, int count) {  // [block][count][L] -> [channel][count]
        next([&](float* to) {
            for (int c = 0; c < channels; ++c)
                for (int t = 0; t < count; ++t)
                    to[int64_t{c} * count + t] = from[(int64_t{c / L} * count + t) * L + c % L];
        });
    }
    void depthwise(const DepthwiseGradients& g, int channels) {
        by_channels(g.taps, channels, g.kernel * g.kernel);
        copy(g.bias, channels);
    }
    void pointwise(const PointwiseGradients& g, int inputs, int outputs) {
        next([&](float* to) { matrix(g, inputs, outputs, to, inputs); });
        copy(g.bias, outputs);
    }

    // to rows [output] of `stride` elements
    static void matrix(const PointwiseGradients& g, int inputs, int outputs, float* to, int64_t stride) {
        for (int o = 0; o < outputs; ++o)
            std::copy(g.weights + o * padded(inputs), g.weights + o * padded(inputs) + inputs, to + o * stride);
    }

private:
    void* const* tensors_;
    int thread_, threads_;
    int item_ = 0;
};

}  // namespace fastattn::FASTATTN_ISA
