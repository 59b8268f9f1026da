// The gradients of the parameters: a sum of each thread's own, in the arrangements in which the passes make them.
#pragma once

#include <vector>

#include "../maps.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

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

struct HeadGradients {
    double* weights;  // [3 * dim][d]
    double* bias;     // [3 * dim]
};

struct ScaleGradients {
    DepthwiseGradients depthwise;
    PointwiseGradients pointwise;
};

struct ConvGradients {
    DepthwiseGradients depthwise;
    HeadGradients heads;
};

class LgaGradients {
public:
    std::vector<ScaleGradients> scales;
    PointwiseGradients attention;
    float* encoding;  // [block][encoding height * width][L]
    std::vector<ConvGradients> convs;
    std::vector<double*> alphas;  // of each branch
    PointwiseGradients out;

    // In memory of `size` floats
    LgaGradients(const LgaPlan& plan, float* memory) : plan_(plan), floats_(memory), doubles_(reinterpret_cast<double*>(memory + float_count(plan))) {
        Bump floats(memory), doubles(memory + float_count(plan));
        arrange(floats, doubles);
    }
    void clear() const { std::fill(floats_, floats_ + size(plan_), 0.0f); }

    static int64_t size(const LgaPlan& plan) { return float_count(plan) + double_count(plan) * 2; }

    // This thread's part of: all[0] = sum of the threads'
    static void add(const std::vector<LgaGradients>& all, int thread, int threads) {
        const auto sum = [&](auto* (*of)(const LgaGradients&), int64_t count) {
            const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
            for (int other = 1; other < threads; ++other)
                for (int64_t i = begin; i < end; ++i) of(all[0])[i] += of(all[other])[i];
        };
        sum(+[](const LgaGradients& g) { return g.floats_; }, float_count(all[0].plan_));
        sum(+[](const LgaGradients& g) { return g.doubles_; }, double_count(all[0].plan_));
    }

    // This thread's part of the tensors
    void write(float* const* tensors, int thread, int threads) const {
        int item = 0;
        const auto next = [&](auto&& f) {
            if (item++ % threads == thread) f(*tensors);
            ++tensors;
        };
        const int dim = plan_.dim;
        const auto copy = [&](const double* from, int64_t count) { next([&](float* to) { std::copy(from, from + count, to); }); };
        const auto by_channels = [&](const float* from, int count) {  // [block][count][L] -> [channel][count]
            next([&](float* to) {
                for (int c = 0; c < dim; ++c)
                    for (int t = 0; t < count; ++t) to[int64_t{c} * count + t] = from[(int64_t{c / L} * count + t) * L + c % L];
            });
        };
        const auto depthwise = [&](const DepthwiseGradients& g) {
            by_channels(g.taps, g.kernel * g.kernel);
            copy(g.bias, dim);
        };
        const auto pointwise = [&](const PointwiseGradients& g, int outputs) {
            next([&](float* to) {
                for (int o = 0; o < outputs; ++o) std::copy(g.weights + o * padded(dim), g.weights + o * padded(dim) + dim, to + int64_t{o} * dim);
            });
            copy(g.bias, outputs);
        };
        for (const ScaleGradients& scale : scales) {
            depthwise(scale.depthwise);
            pointwise(scale.pointwise, dim);
        }
        pointwise(attention, plan_.num_scales + 1);
        by_channels(encoding, plan_.encoding_height * plan_.encoding_width);
        size_t conv = 0;
        for (size_t i = 0; i < plan_.branches.size(); ++i) {
            for (size_t j = 0; j < plan_.branches[i].size(); ++j, ++conv) {
                depthwise(convs[conv].depthwise);
                copy(convs[conv].heads.weights, int64_t{3} * dim * plan_.head_dim());
                copy(convs[conv].heads.bias, int64_t{3} * dim);
            }
            copy(alphas[i], 1);
        }
        pointwise(out, dim);
    }

private:
    explicit LgaGradients(const LgaPlan& plan) : plan_(plan), floats_(nullptr), doubles_(nullptr) {}

    static int64_t float_count(const LgaPlan& plan) {
        Bump floats = Bump::measure(), doubles = Bump::measure();
        LgaGradients(plan).arrange(floats, doubles);
        return floats.taken();
    }
    static int64_t double_count(const LgaPlan& plan) {
        Bump floats = Bump::measure(), doubles = Bump::measure();
        LgaGradients(plan).arrange(floats, doubles);
        return doubles.taken() / 2;
    }

    void arrange(Bump& floats, Bump& doubles) {
        const int dim = plan_.dim;
        const auto vector = [&](int64_t count) { return reinterpret_cast<double*>(doubles.take(2 * count)); };
        const auto depthwise = [&](int kernel) {
            return DepthwiseGradients{kernel, floats.take(int64_t{kernel} * kernel * padded(dim)), vector(padded(dim))};
        };
        const auto pointwise = [&](int outputs) { return PointwiseGradients{floats.take(outputs * padded(dim)), vector(padded(outputs))}; };
        for (int i = 0; i < plan_.num_scales; ++i) {
            const DepthwiseGradients d = depthwise(3);
            scales.push_back({d, pointwise(dim)});
        }
        attention = pointwise(plan_.num_scales + 1);
        encoding = floats.take(padded(dim) * plan_.encoding_height * plan_.encoding_width);
        for (const auto& kernels : plan_.branches) {
            for (int kernel : kernels) {
                const DepthwiseGradients d = depthwise(kernel);
                double* weights = vector(int64_t{3} * dim * plan_.head_dim());
                convs.push_back({d, {weights, vector(int64_t{3} * dim)}});
            }
            alphas.push_back(vector(1));
        }
        out = pointwise(dim);
    }

    const LgaPlan& plan_;
    float* floats_;
    double* doubles_;
};

}  // namespace fastattn
