// The steps from statistics to gates, on columns of vectors, forward and backward. Parameters are float32.
#pragma once

#include <cmath>

#include "passes.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

// The parameters of a call as passes and steps read them: float32, taps of a convolution of each channel [tap][stride],
// the weights of the pixels as x lies
class GateParams {
public:
    GateParams(const GatesPlan& plan, Bump& bump) : plan_(plan) {
        for (size_t i = 0; i < plan.numels.size(); ++i) {
            const Stage* taps = along_axes(static_cast<int>(i));
            const bool copied = taps || plan.param_dtype != DType::float32 || (weighted(i) && plan.channels_last);
            const int64_t size = taps ? taps->count * GatesPlan::stride(taps->in) : plan.numels[i];
            memory_.push_back(copied ? bump.take(size) : nullptr);
            sizes_.push_back(size);
        }
        values_.resize(memory_.size());
    }

    // One thread's part
    void read(const void* const* tensors, int thread, int threads) {
        for (size_t i = 0; i < memory_.size(); ++i) {
            if (weighted(i) && memory_[i]) weights(tensors[i], thread, threads);
            if (static_cast<int>(i) % threads != thread) continue;
            values_[i] = memory_[i] ? memory_[i] : static_cast<const float*>(tensors[i]);
            if (!memory_[i] || weighted(i)) continue;
            with_element(plan_.param_dtype, [&](auto element) {
                using T = typename decltype(element)::type;
                const T* from = static_cast<const T*>(tensors[i]);
                if (const Stage* taps = along_axes(static_cast<int>(i))) {
                    for (int c = 0; c < taps->in; ++c)
                        for (int t = 0; t < taps->count; ++t)
                            memory_[i][t * GatesPlan::stride(taps->in) + c] = load_one(from + c * taps->count + t);
                } else {
                    for_lanes(0, static_cast<int>(plan_.numels[i]),
                              [&](int j, auto m) { store(memory_[i] + j, load(from + j, m), m); });
                }
            });
        }
    }

    const float* of(int index) const { return values_[index]; }
    int64_t size(int index) const { return sizes_[index]; }  // of its gradient, arranged alike

    const Stage* along_axes(int index) const {
        for (const Stage& s : plan_.stages)
            if (s.step == Step::along_axes && s.first == index) return &s;
        return nullptr;
    }

private:
    bool weighted(size_t index) const { return !index && plan_.pool == Pool::weighted; }

    // One thread's pixels of the weights (channels, H, W)
    void weights(const void* tensor, int thread, int threads) {
        const int64_t pixels = plan_.pixels(), begin = pixels * thread / threads, end = pixels * (thread + 1) / threads;
        with_element(plan_.param_dtype, [&](auto element) {
            const auto* from = static_cast<const typename decltype(element)::type*>(tensor);
            for (int c = 0; c < plan_.channels; c += L) {
                const int n = std::min(L, plan_.channels - c);
                for (int64_t p = begin; p < end; p += L) {
                    const int count = static_cast<int>(std::min<int64_t>(L, end - p));
                    V r[L] = {};
                    for (int i = 0; i < n; ++i) r[i] = load(from + (c + i) * pixels + p, Tail(count));
                    if (plan_.channels_last) {
                        transpose(r);
                        for (int i = 0; i < count; ++i) store(memory_[0] + (p + i) * plan_.channels + c, r[i], Tail(n));
                    } else {
                        for (int i = 0; i < n; ++i) store(memory_[0] + (c + i) * pixels + p, r[i], Tail(count));
                    }
                }
            }
        });
    }

    const GatesPlan& plan_;
    std::vector<float*> memory_;
    std::vector<int64_t> sizes_;
    std::vector<const float*> values_;
};

inline float dot(const float* a, const float* b, int count) {
    V s[2] = {};
    int i = 0;
    for (; i + 2 * L <= count; i += 2 * L) {
        s[0] += load(a + i) * load(b + i);
        s[1] += load(a + i + L) * load(b + i + L);
    }
    for_lanes(i, count, [&](int j, auto m) { s[0] += load(a + j, m) * load(b + j, m); });
    return sum(s[0] + s[1]);
}

// to += scale * from
inline void add_scaled(const float* from, float scale, int count, float* to) {
    for_lanes(0, count, [&](int i, auto m) { store(to + i, load(to + i, m) + scale * load(from + i, m), m); });
}

// columns of `to` = weight (out, in) x columns of `from` + bias, or nothing
INLINE_BODY inline void linear(const float* weight, const float* bias, int in, int out, Strip from, Strip to, int begin,
                               int end) {
    for (int o = 0; o < out; o += L) {
        const int count = std::min(L, out - o);
        const V shift = !bias ? V{} : count == L ? load(bias + o) : load(bias + o, Tail(count));
        for (int j = begin; j < end; ++j) {
            V rows[L] = {};
            const float* x = from.at(j);
            if (count == L) {
                for_lanes(0, in, [&](int i, auto m) {
                    const V v = load(x + i, m);
#pragma GCC unroll 16
                    for (int r = 0; r < L; ++r) rows[r] += v * load(weight + int64_t{o + r} * in + i, m);
                });
            } else {
                for (int r = 0; r < count; ++r)
                    for_lanes(0, in, [&](int i, auto m) {
                        rows[r] += load(x + i, m) * load(weight + int64_t{o + r} * in + i, m);
                    });
            }
            store(to.at(j) + o, sum_rows(rows) + shift);
        }
    }
}

// The gradients of the same, of the weight and bias added to those there are
INLINE_BODY inline void linear_backward(const float* weight, int in, int out, Strip from, Strip d_to, Strip d_from,
                                        int begin, int end, float* d_weight, float* d_bias) {
    for (int j = begin; j < end; ++j) {
        const float *d = d_to.at(j), *x = from.at(j);
        float* to = d_from.at(j);
        std::fill(to, to + in, 0.0f);
        for (int o = 0; o < out; ++o) {
            const float* row = weight + int64_t{o} * in;
            const V scale = splat(d[o]);
            float* d_row = d_weight + int64_t{o} * in;
            for_lanes(0, in, [&](int i, auto m) {
                store(to + i, load(to + i, m) + scale * load(row + i, m), m);
                store(d_row + i, load(d_row + i, m) + scale * load(x + i, m), m);
            });
            if (d_bias) d_bias[o] += d[o];
        }
    }
}

// A sigmoid and its derivative, exact to rounding where it is nearly one
struct Sigmoid {
    V value, slope;

    explicit Sigmoid(V z) {
        const V e = exp(-z);
        value = reciprocal(1.0f + e), slope = e * value * value;
    }
};

// The value and derivative of an activation
struct Activation {
    Step step;

    V operator()(V z) const {
        switch (step) {
            case Step::relu: return z < 0.0f ? V{} : z;
            case Step::silu: return z * sigmoid(z);
            case Step::hard_swish: return z * sixth(z);
            case Step::sigmoid: return sigmoid(z);
            default: return sixth(z);
        }
    }
    V derivative(V z) const {
        const V zero{}, one = splat(1.0f);
        switch (step) {
            case Step::relu: return z > 0.0f ? one : zero;
            case Step::silu: {
                const Sigmoid s(z);
                return s.value + z * s.slope;
            }
            case Step::hard_swish: return z <= -3.0f ? zero : z < 3.0f ? z * (1.0f / 3.0f) + 0.5f : one;
            case Step::sigmoid: return Sigmoid(z).slope;
            default: return z > -3.0f ? (z < 3.0f ? splat(1.0f / 6.0f) : zero) : zero;
        }
    }

private:
    static V sixth(V z) {
        const V t = z * (1.0f / 6.0f) + 0.5f;
        const V low = t < 0.0f ? V{} : t;  // NaN stays
        return low > 1.0f ? splat(1.0f) : low;
    }
};

// Columns normalised together, each group of channels by its mean and variance. `numbers` are mean and reciprocal
// deviation of each channel.
class Norm {
public:
    Norm(int channels, int groups, float epsilon, float* scratch)
        : channels_(channels),
          each_(channels / groups),
          epsilon_(epsilon),
          mean_(scratch),
          scale_(scratch + GatesPlan::stride(channels)),
          sums_{scratch + 2 * GatesPlan::stride(channels), scratch + 3 * GatesPlan::stride(channels)} {}
    static int64_t scratch(int channels) { return 4 * GatesPlan::stride(channels); }

    void measure(Strip from, int begin, int end) {
        const double columns = end - begin;
        sum(mean_, begin, end, columns, [&](int j, int c, auto m) { return load(from.at(j) + c, m); });
        spread(mean_, each_);
        sum(scale_, begin, end, columns, [&](int j, int c, auto m) {
            const V d = load(from.at(j) + c, m) - load(mean_ + c, m);
            return d * d;
        });
        spread(scale_, each_);
    }
    float mean(int c) const { return mean_[c]; }
    float variance(int c) const { return scale_[c]; }  // until it is a scale
    void to_scale() {
        for (int c = 0; c < channels_; ++c) scale_[c] = 1.0f / std::sqrt(scale_[c] + epsilon_);
    }

    void apply(Strip from, Strip to, int begin, int end, const float* weight, const float* bias) const {
        for (int j = begin; j < end; ++j)
            for_lanes(0, channels_, [&](int c, auto m) {
                const V normal = (load(from.at(j) + c, m) - load(mean_ + c, m)) * load(scale_ + c, m);
                store(to.at(j) + c, normal * load(weight + c, m) + load(bias + c, m), m);
            });
    }

    void backward(Strip from, Strip d_to, Strip d_from, int begin, int end, const float* weight, float* d_weight,
                  float* d_bias) {
        const auto normal = [&](int j, int c, auto m) {
            return (load(from.at(j) + c, m) - load(mean_ + c, m)) * load(scale_ + c, m);
        };
        sum(sums_[0], begin, end, 1, [&](int j, int c, auto m) { return load(d_to.at(j) + c, m); });
        sum(sums_[1], begin, end, 1, [&](int j, int c, auto m) { return load(d_to.at(j) + c, m) * normal(j, c, m); });
        add_scaled(sums_[0], 1.0f, channels_, d_bias);
        add_scaled(sums_[1], 1.0f, channels_, d_weight);
        for (float* sums : sums_) {
            for (int c = 0; c < channels_; ++c) sums[c] *= weight[c];
            spread(sums, static_cast<double>(end - begin) * each_);
        }
        for (int j = begin; j < end; ++j)
            for_lanes(0, channels_, [&](int c, auto m) {
                const V d = load(d_to.at(j) + c, m) * load(weight + c, m);
                const V centred = d - load(sums_[0] + c, m) - normal(j, c, m) * load(sums_[1] + c, m);
                store(d_from.at(j) + c, centred * load(scale_ + c, m), m);
            });
    }

private:
    // of f over the columns, divided: in double, as a mean whose rounding is large beside the deviation is no mean
    template <class F>
    INLINE_BODY void sum(float* to, int begin, int end, double by, F&& f) {
        for_lanes(0, channels_, [&](int c, auto m) {
            double total[L] = {};
            for (int j = begin; j < end; ++j) {
                const V v = f(j, c, m);
                for (int i = 0; i < L; ++i) total[i] += v[i];
            }
            V s;
            for (int i = 0; i < L; ++i) s[i] = static_cast<float>(total[i] / by);
            store(to + c, s, m);
        });
    }

    // every channel's number = the sum of its group's, divided
    void spread(float* numbers, double by) {
        for (int c = 0; c < channels_; c += each_) {
            double s = 0;
            for (int i = c; i < c + each_; ++i) s += numbers[i];
            std::fill(numbers + c, numbers + c + each_, static_cast<float>(s / by));
        }
    }

    int channels_, each_;
    float epsilon_;
    float *mean_, *scale_, *sums_[2];
};

// A call's columns: statistics, and what each step makes of them
struct Levels {
    std::vector<Strip> values;

    Levels(const GatesPlan& plan, Bump& bump) {
        take(bump, int64_t{plan.batch} * plan.columns(), plan.channels);
        for (const Stage& s : plan.stages) take(bump, int64_t{plan.batch} * s.columns_out, s.out);
    }
    void take(Bump& bump, int64_t columns, int channels) {
        const int64_t stride = GatesPlan::stride(channels);
        values.push_back({bump.take(columns * stride), stride});
    }
};

class Steps {
public:
    static int64_t scratch(const GatesPlan& plan) {
        int64_t size = plan.stride() + 64;
        for (const Stage& s : plan.stages) size = std::max(size, Norm::scratch(s.in) + 2 * int64_t{s.count});
        return size;
    }

    Steps(const GatesPlan& plan, const GateParams& params, const Levels& levels)
        : plan_(plan),
          params_(params),
          levels_(levels) {}

    // The columns of samples [begin, end) of the level behind stage `index`; `statistics` are what a normalisation by
    // the batch adds to, or null
    void forward(int index, int begin, int end, float* scratch, float* statistics) const {
        const Stage& s = plan_.stages[index];
        const Strip from = levels_.values[index], to = levels_.values[index + 1];
        const int first = begin * s.columns_in, last = end * s.columns_in;
        const auto p = [&](int i) { return params_.of(s.first + i); };
        switch (s.step) {
            case Step::linear: return linear(p(0), p(1), s.in, s.out, from, to, first, last);
            case Step::linear_no_bias: return linear(p(0), nullptr, s.in, s.out, from, to, first, last);
            case Step::linear_by_axis:
                return by_axis(begin, end, [&](int axis, int a, int b) {
                    linear(p(2 * axis), p(2 * axis + 1), s.in, s.out, from, to, a, b);
                });
            case Step::along_channels:
                for (int j = first; j < last; ++j) {
                    const float* padded = pad(from.at(j), s.in, s.count / 2, scratch);
                    for_lanes(0, s.in, [&](int c, auto m) {
                        V total{};
                        for (int t = 0; t < s.count; ++t) total += p(0)[t] * load(padded + c + t);
                        store(to.at(j) + c, total, m);
                    });
                }
                return;
            case Step::along_axes:
                return by_axis(begin, end, [&](int, int a, int b) { convolve(s, p(0), 1, from, to, a, b); });
            case Step::group_norm:
                return by_axis(begin, end, [&](int, int a, int b) {
                    Norm norm(s.in, s.count, s.number, scratch);
                    norm.measure(from, a, b);
                    norm.to_scale();
                    norm.apply(from, to, a, b, p(0), p(1));
                });
            case Step::batch_norm_of_batch: {
                Norm norm(s.in, s.in, s.number, scratch);
                norm.measure(from, first, last);
                for (int c = 0; c < s.in && statistics; ++c)
                    statistics[c] = norm.mean(c), statistics[s.in + c] = norm.variance(c);
                norm.to_scale();
                return norm.apply(from, to, first, last, p(0), p(1));
            }
            case Step::batch_norm:
                for (int c = 0; c < s.in; ++c) {
                    scratch[c] = p(0)[c] / std::sqrt(p(3)[c] + s.number);
                    scratch[to.stride + c] = p(1)[c] - p(2)[c] * scratch[c];
                }
                for (int j = first; j < last; ++j)
                    for_lanes(0, s.in, [&](int c, auto m) {
                        store(to.at(j) + c,
                              load(from.at(j) + c, m) * load(scratch + c, m) + load(scratch + to.stride + c, m), m);
                    });
                return;
            case Step::sum:
                for (int b = begin; b < end; ++b)
                    for_lanes(0, s.in, [&](int c, auto m) {
                        const float* x = from.at(int64_t{b} * s.columns_in) + c;
                        store(to.at(b) + c, load(x, m) + load(x + from.stride, m), m);
                    });
                return;
            case Step::shuffle:
                for (int b = begin; b < end; ++b) shuffle(s, from.at(2 * b), to.at(3 * b));
                return;
            case Step::energy: {
                const float pixels = static_cast<float>(plan_.pixels()),
                            to_sum = 4 * pixels / std::max(pixels - 1, 1.0f);
                for (int b = begin; b < end; ++b)
                    for_lanes(0, s.in, [&](int c, auto m) {
                        store(to.at(3 * b) + c, 1.0f / (load(from.at(2 * b + 1) + c, m) * to_sum + 4 * s.number), m);
                        store(to.at(3 * b + 1) + c, V{}, m);
                        store(to.at(3 * b + 2) + c, splat(0.5f), m);
                    });
                return;
            }
            default: {
                const Activation act{s.step};
                for (int j = first; j < last; ++j)
                    for_lanes(0, s.in, [&](int c, auto m) { store(to.at(j) + c, act(load(from.at(j) + c, m)), m); });
            }
        }
    }

    // The gradients of the columns before stage `index` from those behind it, `grads` as the levels; gradients of its
    // parameters are added to those of `sums`, by parameter
    void backward(int index, int begin, int end, float* scratch, const Levels& grads,
                  const std::vector<float*>& sums) const {
        const Stage& s = plan_.stages[index];
        const Strip x = levels_.values[index], y = levels_.values[index + 1];
        const Strip d_x = grads.values[index], d_y = grads.values[index + 1];
        const int first = begin * s.columns_in, last = end * s.columns_in;
        const auto p = [&](int i) { return params_.of(s.first + i); };
        const auto d = [&](int i) { return sums[s.first + i]; };
        switch (s.step) {
            case Step::linear: return linear_backward(p(0), s.in, s.out, x, d_y, d_x, first, last, d(0), d(1));
            case Step::linear_no_bias:
                return linear_backward(p(0), s.in, s.out, x, d_y, d_x, first, last, d(0), nullptr);
            case Step::linear_by_axis:
                return by_axis(begin, end, [&](int axis, int a, int b) {
                    const int i = 2 * axis;
                    linear_backward(p(i), s.in, s.out, x, d_y, d_x, a, b, d(i), d(i + 1));
                });
            case Step::along_channels:
                for (int j = first; j < last; ++j) {
                    const int reach = s.count / 2;
                    const float* padded = pad(x.at(j), s.in, reach, scratch);
                    for (int t = 0; t < s.count; ++t) d(0)[t] += dot(padded + t, d_y.at(j), s.in);
                    padded = pad(d_y.at(j), s.in, reach, scratch);
                    for_lanes(0, s.in, [&](int c, auto m) {
                        V total{};
                        for (int t = 0; t < s.count; ++t) total += p(0)[s.count - 1 - t] * load(padded + c + t);
                        store(d_x.at(j) + c, total, m);
                    });
                }
                return;
            case Step::along_axes:
                return by_axis(begin, end, [&](int, int a, int b) {
                    convolve(s, p(0), -1, d_y, d_x, a, b);
                    for (int t = 0; t < s.count; ++t) {
                        const int shift = t - s.count / 2;
                        for_lanes(0, s.in, [&](int c, auto m) {
                            V total{};
                            for (int j = std::max(a, a - shift); j < std::min(b, b - shift); ++j)
                                total += load(x.at(j + shift) + c, m) * load(d_y.at(j) + c, m);
                            float* to = d(0) + t * x.stride + c;
                            store(to, load(to, m) + total, m);
                        });
                    }
                });
            case Step::group_norm:
                return by_axis(begin, end, [&](int, int a, int b) {
                    Norm norm(s.in, s.count, s.number, scratch);
                    norm.measure(x, a, b);
                    norm.to_scale();
                    norm.backward(x, d_y, d_x, a, b, p(0), d(0), d(1));
                });
            case Step::batch_norm_of_batch: {
                Norm norm(s.in, s.in, s.number, scratch);
                norm.measure(x, first, last);
                norm.to_scale();
                return norm.backward(x, d_y, d_x, first, last, p(0), d(0), d(1));
            }
            case Step::batch_norm:
                for (int c = 0; c < s.in; ++c) {
                    const float scale = 1.0f / std::sqrt(p(3)[c] + s.number);
                    float weight = 0, bias = 0;
                    for (int j = first; j < last; ++j) {
                        weight += d_y.at(j)[c] * (x.at(j)[c] - p(2)[c]) * scale, bias += d_y.at(j)[c];
                        d_x.at(j)[c] = d_y.at(j)[c] * p(0)[c] * scale;
                    }
                    d(0)[c] += weight, d(1)[c] += bias;
                }
                return;
            case Step::sum:
                for (int b = begin; b < end; ++b)
                    for (int column = 0; column < 2; ++column)
                        std::copy(d_y.at(b), d_y.at(b) + s.in, d_x.at(int64_t{b} * s.columns_in + column));
                return;
            case Step::shuffle:
                for (int b = begin; b < end; ++b) shuffle_backward(s, x.at(2 * b), d_y.at(3 * b), d_x.at(2 * b), sums);
                return;
            case Step::energy: {
                const float pixels = static_cast<float>(plan_.pixels()),
                            to_sum = 4 * pixels / std::max(pixels - 1, 1.0f);
                for (int b = begin; b < end; ++b)
                    for_lanes(0, s.in, [&](int c, auto m) {
                        const V q = load(y.at(3 * b) + c, m);
                        store(d_x.at(2 * b) + c, V{}, m);
                        store(d_x.at(2 * b + 1) + c, -to_sum * q * q * load(d_y.at(3 * b) + c, m), m);
                    });
                return;
            }
            default: {
                const Activation act{s.step};
                for (int j = first; j < last; ++j)
                    for_lanes(0, s.in, [&](int c, auto m) {
                        store(d_x.at(j) + c, load(d_y.at(j) + c, m) * act.derivative(load(x.at(j) + c, m)), m);
                    });
            }
        }
    }

private:
    // f(axis, first column, last) of samples' rows and of their columns
    template <class F>
    void by_axis(int begin, int end, F&& f) const {
        const int each = plan_.height + plan_.width;
        for (int b = begin; b < end; ++b) {
            f(0, b * each, b * each + plan_.height);
            f(1, b * each + plan_.height, (b + 1) * each);
        }
    }

    // The vector with zeros before and behind it, as far as a kernel and a vector reach
    static const float* pad(const float* from, int count, int reach, float* to) {
        std::fill(to, to + reach, 0.0f);
        std::copy(from, from + count, to + reach);
        std::fill(to + reach + count, to + 2 * reach + count + L, 0.0f);
        return to;
    }

    // Along columns [begin, end), zeros around; direction -1 is that of the gradient
    static void convolve(const Stage& s, const float* taps, int direction, Strip from, Strip to, int begin, int end) {
        for (int j = begin; j < end; ++j)
            for_lanes(0, s.in, [&](int c, auto m) {
                V total{};
                for (int t = 0; t < s.count; ++t) {
                    const int at = j + direction * (t - s.count / 2);
                    if (at >= begin && at < end)
                        total += load(taps + t * from.stride + c, m) * load(from.at(at) + c, m);
                }
                store(to.at(j) + c, total, m);
            });
    }

    // f(channel of the first half of a group, of the second, index in either)
    template <class F>
    static void for_pairs(const Stage& s, F&& f) {
        const int half = s.in / (2 * s.count);
        for (int g = 0; g < s.count; ++g)
            for (int i = 0; i < half; ++i) f(2 * g * half + i, (2 * g + 1) * half + i, i);
    }

    void shuffle(const Stage& s, const float* in, float* out) const {
        const float *mean = in, *variance = in + plan_.stride();
        float *q = out, *a = out + plan_.stride(), *b = out + 2 * plan_.stride();
        const auto p = [&](int k, int i) { return params_.of(s.first + k)[i]; };
        for_pairs(s, [&](int one, int other, int i) {
            q[one] = q[other] = a[one] = 0;
            b[one] = p(0, i) * mean[one] + p(1, i);
            a[other] = p(2, i) * p(4, i) / std::sqrt(variance[other] + s.number);
            b[other] = p(2, i) * p(5, i) + p(3, i);
        });
    }

    void shuffle_backward(const Stage& s, const float* in, const float* d_out, float* d_in,
                          const std::vector<float*>& sums) const {
        const float *mean = in, *variance = in + plan_.stride();
        const float *d_a = d_out + plan_.stride(), *d_b = d_out + 2 * plan_.stride();
        float *d_mean = d_in, *d_variance = d_in + plan_.stride();
        const auto p = [&](int k, int i) { return params_.of(s.first + k)[i]; };
        const auto add = [&](int k, int i, float value) { sums[s.first + k][i] += value; };
        for_pairs(s, [&](int one, int other, int i) {
            add(0, i, d_b[one] * mean[one]), add(1, i, d_b[one]);
            d_mean[one] = d_b[one] * p(0, i), d_variance[one] = 0;
            const float scale = 1.0f / std::sqrt(variance[other] + s.number);
            add(2, i, d_a[other] * p(4, i) * scale + d_b[other] * p(5, i)), add(3, i, d_b[other]);
            add(4, i, d_a[other] * p(2, i) * scale), add(5, i, d_b[other] * p(2, i));
            d_mean[other] = 0;
            d_variance[other] = -0.5f * d_a[other] * p(2, i) * p(4, i) * scale * scale * scale;
        });
    }

    const GatesPlan& plan_;
    const GateParams& params_;
    const Levels& levels_;
};

}  // namespace fastattn::FASTATTN_ISA
