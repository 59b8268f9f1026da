// The gates backward at one instruction-set level. The steps are done anew from the statistics that forward kept; then
// one pass over x and the gradient sums that of the gates, and one writes the gradient of x.
#include "frame.h"

namespace fastattn::FASTATTN_ISA {
namespace {

inline V ones_where(V a, V b) { return a == b ? splat(1.0f) : V{}; }

template <class T>
class GatesBackward {
public:
    GatesBackward(const GatesPlan& plan, const BackwardArgs& args)
        : plan_(plan),
          layout_(layout_of(plan)),
          args_(args) {}

    void run() {
        const int limit = useful_threads(plan_.elements(), args_.threads);
        Bump bump = Bump::measure();
        Memory(plan_, layout_, args_, limit, bump);
        bump = Bump(workspace(bump.taken()));
        Memory memory(plan_, layout_, args_, limit, bump);
#pragma omp parallel num_threads(limit)
        {
            const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
            memory.params.read(args_.params, thread, threads);
            for (size_t i = first_summed(); i < memory.sums[thread].size(); ++i)
                std::fill_n(memory.sums[thread][i], memory.params.size(static_cast<int>(i)), 0.0f);
#pragma omp barrier
            each_sample(memory, thread, threads);
            if (args_.grad_params) {
#pragma omp barrier
                write(memory, thread, threads);
            }
        }
        trim_workspace();
    }

private:
    struct Memory : CallMemory {
        Levels grads;
        float *d_gates = nullptr, *counts = nullptr, *d_maps = nullptr;  // [sample][1, 1 or 2][pixel]
        float* ties;                                                     // [sample][channel]: pixels with the maximum
        std::vector<std::vector<float*>> sums;                           // by thread and parameter

        Memory(const GatesPlan& plan, const Layout& layout, const BackwardArgs& args, int threads, Bump& bump)
            : CallMemory(plan, layout, const_cast<float*>(args.saved), threads, bump),
              grads(plan, bump),
              ties(bump.take(plan.batch * plan.stride())),
              sums(threads) {
            const int64_t count = plan.batch * plan.pixels();
            if (maps) d_gates = bump.take(count), counts = bump.take(count), d_maps = bump.take(2 * count);
            for (auto& of : sums)
                for (int i = 0; i < plan.param_count(); ++i)
                    of.push_back(i || plan.pool != Pool::weighted ? bump.take(params.size(i)) : nullptr);
        }
    };

    size_t first_summed() const { return plan_.pool == Pool::weighted; }  // its weights are constants

    void each_sample(Memory& memory, int thread, int threads) const {
        const Steps steps(plan_, memory.params, memory.levels);
        float* scratch = memory.own[thread].steps;
        const auto forward = [&](int i, int begin, int end) { steps.forward(i, begin, end, scratch, nullptr); };
        const auto backward = [&](int i, int begin, int end) {
            steps.backward(i, begin, end, scratch, memory.grads, memory.sums[thread]);
        };
        const auto each = [&](auto&& f) { for_samples(plan_.batch, thread, threads, f); };
        const int count = static_cast<int>(plan_.stages.size());
        const bool space = plan_.product == Product::space;
        if (!plan_.joint()) {
            each([&](int b, Team team) {
                if (!team.rank) {
                    for (int i = 0; i < count; ++i) forward(i, b, b + 1);
                    if (space) logits(memory, b, thread);
                }
                team.sync();
                if (space) {
                    const SpaceNorm normal = norm(memory);
                    sum_of_pixels(memory, b, team, normal);
                    if (!team.rank) to_maps(memory, b, normal, {}, thread);
                    team.sync();
                }
                sum_of_gates(memory, b, team);
                team.sync();
                if (!team.rank) {
                    for (int i = count - 1; i >= 0; --i) backward(i, b, b + 1);
                    finish(memory, b);
                }
                team.sync();
                if (args_.grad_x) gradient(memory, b, team);
                team.sync();
            });
            return;
        }
        const Range mine{plan_.batch * thread / threads, plan_.batch * (thread + 1) / threads};
        all_steps(plan_, false, thread, threads, forward);
        if (space) {
#pragma omp barrier
            for (int b = mine.begin; b < mine.end; ++b) logits(memory, b, thread);
#pragma omp barrier
            const SpaceNorm normal = norm(memory);
            each([&](int b, Team team) { sum_of_pixels(memory, b, team, normal); });
#pragma omp barrier
            const std::array<float, 2> shares = plan_.of_batch ? shares_of(memory, normal) : std::array<float, 2>{};
#pragma omp barrier
            for (int b = mine.begin; b < mine.end; ++b) to_maps(memory, b, normal, shares, thread);
        }
#pragma omp barrier
        each([&](int b, Team team) {
            sum_of_gates(memory, b, team);
            team.sync();
        });
#pragma omp barrier
        all_steps(plan_, true, thread, threads, backward);
        for (int b = mine.begin; b < mine.end; ++b) finish(memory, b);
#pragma omp barrier
        if (args_.grad_x)
            each([&](int b, Team team) {
                gradient(memory, b, team);
                team.sync();
            });
    }

    Planes<const T> x(int b) const { return {static_cast<const T*>(args_.x) + b * plan_.sample()}; }
    Planes<const T> grad_out(int b) const { return {static_cast<const T*>(args_.grad_out) + b * plan_.sample()}; }
    static float* column(const Strip& level, int b, int count, int i) { return level.at(int64_t{b} * count + i); }
    Range mine(Team team) const { return slice(plan_.channels, team.rank, team.size); }
    bool shuffled() const { return plan_.product == Product::shuffled; }
    bool has_max() const { return plan_.pool == Pool::mean_max; }

    void logits(const Memory& memory, int b, int thread) const {
        convolve(Padded::of(plan_, memory.own[thread].padded, 2, memory.maps + 2 * b * plan_.pixels()), 2,
                 memory.params.of(plan_.space_param()), false, memory.gates + b * plan_.pixels());
    }

    SpaceNorm norm(const Memory& memory) const {
        const auto p = [&](int i) { return *memory.params.of(plan_.space_param() + i); };
        SpaceNorm norm{0, 0, plan_.epsilon, p(1), p(2)};
        if (plan_.of_batch) norm.measure(memory.gates, plan_.batch * plan_.pixels());
        else norm.mean = p(3), norm.variance = p(4);
        return norm;
    }

    // What the pixels' gates are given, and how many channels have the maximum
    void sum_of_pixels(const Memory& memory, int b, Team team, const SpaceNorm& normal) const {
        const int64_t pixels = plan_.pixels();
        float *d = memory.d_gates + b * pixels, *counts = memory.counts + b * pixels;
        const Range range = part(pixels, team);
        sum_pixels<2>(
            layout_, range, Vectors<1>{column(memory.levels.values.back(), b, 1, 0)},
            Maps<1>{memory.maps + (2 * b + 1) * pixels}, {0.0f, 0.0f}, {d, counts},
            [](auto m, const V* k, const V* n, V* result, V v, V g) {
                const V gated = v * k[0];
                result[0] = fused(g, keep(gated, m), result[0]), result[1] += keep(ones_where(gated, n[0]), m);
            },
            [](int, V v) { return sum(v); }, x(b).data, grad_out(b).data);
        const float a = normal.scale() * normal.weight, shift = normal.bias - normal.mean * a;
        for_lanes(range.begin, range.end, [&](int p, auto m) {
            const Sigmoid s(load(memory.gates + b * pixels + p, m) * a + shift);
            store(d + p, load(d + p, m) * s.slope, m);
        });
        team.sync();
    }

    // The means of the normalised gates' gradient, and of it times the normalised
    std::array<float, 2> shares_of(const Memory& memory, const SpaceNorm& normal) const {
        const int64_t count = plan_.batch * plan_.pixels();
        double sums[2] = {};
        for (int64_t i = 0; i < count; ++i) {
            sums[0] += memory.d_gates[i];
            sums[1] += memory.d_gates[i] * (memory.gates[i] - normal.mean) * normal.scale();
        }
        return {static_cast<float>(sums[0] / static_cast<double>(count)),
                static_cast<float>(sums[1] / static_cast<double>(count))};
    }

    // The gradients of mean and maximum over the channels, by channel that has it; the logits become the gates
    void to_maps(const Memory& memory, int b, const SpaceNorm& normal, std::array<float, 2> shares, int thread) const {
        const int64_t pixels = plan_.pixels();
        const int first = plan_.space_param(), count = static_cast<int>(pixels);
        float *d = memory.d_gates + b * pixels, *gates = memory.gates + b * pixels,
              *d_maps = memory.d_maps + 2 * b * pixels;
        const auto& sums = memory.sums[thread];
        const float scale = normal.scale();
        V weight{}, bias{};
        for_lanes(0, count, [&](int p, auto m) {
            const V z = (load(gates + p, m) - normal.mean) * scale, given = load(d + p, m);
            weight += keep(given * z, m), bias += given;
            store(d + p, (given - shares[0] - z * shares[1]) * (normal.weight * scale), m);
        });
        *sums[first + 1] += sum(weight), *sums[first + 2] += sum(bias);
        float* padded = memory.own[thread].padded;
        convolve_taps(Padded::of(plan_, padded, 2, memory.maps + 2 * b * pixels), 2, d, sums[first]);
        const Padded turned = Padded::of(plan_, padded, 1, d);
        for (int map = 0; map < 2; ++map)
            convolve(turned, 1, memory.params.of(first) + map * plan_.kernel * plan_.kernel, true,
                     d_maps + map * pixels);
        const float share = 1.0f / static_cast<float>(plan_.channels);
        const float* counts = memory.counts + b * pixels;
        for_lanes(0, count, [&](int p, auto m) {
            store(d_maps + p, load(d_maps + p, m) * share, m);
            store(d_maps + pixels + p, load(d_maps + pixels + p, m) / load(counts + p, m), m);
        });
        normal.gate(gates, pixels, gates);
    }

    Maps<4> maps_of(const Memory& memory, int b) const {
        const int64_t pixels = plan_.pixels();
        const float* d = memory.d_maps + 2 * b * pixels;
        return {memory.gates + b * pixels, d, d + pixels, memory.maps + (2 * b + 1) * pixels};
    }
    // The gradient of the gated channels, of the maps above
    static V of_gated(const V* n, V gated, V g) { return g * n[0] + n[1] + (gated == n[3] ? n[2] : V{}); }

    void sum_of_gates(const Memory& memory, int b, Team team) const {
        const Strip &level = memory.levels.values.back(), &to = memory.grads.values.back();
        const Maps<0> no_maps{};
        switch (plan_.product) {
            case Product::channels: {
                float *d = column(to, b, 1, 0), *ties = memory.ties + b * plan_.stride();
                if (!has_max())
                    return sum_channels<1>(
                        layout_, mine(team), Vectors<0>{}, no_maps, {d},
                        [](auto, const V*, const V*, V* sum, V v, V g) { sum[0] += v * g; }, x(b), grad_out(b));
                return sum_channels<2>(
                    layout_, mine(team), Vectors<1>{column(memory.levels.values[0], b, 2, 1)}, no_maps, {d, ties},
                    [](auto m, const V* k, const V*, V* sum, V v, V g) {
                        sum[0] += v * g, sum[1] += keep(ones_where(v, k[0]), m);
                    },
                    x(b), grad_out(b));
            }
            case Product::space:
                return sum_channels<2>(
                    layout_, mine(team), Vectors<2>{column(level, b, 1, 0), column(memory.levels.values[0], b, 2, 1)},
                    maps_of(memory, b), {column(to, b, 1, 0), memory.ties + b * plan_.stride()},
                    [](auto m, const V* k, const V* n, V* sum, V v, V g) {
                        sum[0] += v * of_gated(n, v * k[0], g), sum[1] += keep(ones_where(v, k[1]), m);
                    },
                    x(b), grad_out(b));
            case Product::axes: {
                const int count = plan_.columns();
                const Strip gates{column(level, b, count, 0), level.stride}, sums{column(to, b, count, 0), to.stride};
                return sum_axes<1>(
                    layout_, mine(team), {gates}, memory.own[team.thread(team.rank)].axes, sums,
                    [](const V* row, const V* column, V& across, V& down, V v, V g) {
                        const V both = v * g;
                        across += both * column[0], down += both * row[0];
                    },
                    x(b).data, grad_out(b).data);
            }
            default: break;
        }
        const Vectors<4> numbers{column(memory.levels.values[0], b, 2, 0), column(level, b, 3, 0),
                                 column(level, b, 3, 1), column(level, b, 3, 2)};
        const std::array<float*, 3> sums{column(to, b, 3, 0), column(to, b, 3, 1), column(to, b, 3, 2)};
        sum_channels<3>(
            layout_, mine(team), numbers, no_maps, sums,
            [](auto, const V* k, const V*, V* sum, V v, V g) {
                const V d = v - k[0], logit = g * v * Sigmoid(quadratic(d, k[1], k[2], k[3])).slope;
                sum[2] += logit, sum[1] += logit * d, sum[0] += logit * d * d;
            },
            x(b), unshuffled(memory, b, team));
    }

    // The gradient of the output, its channels in the order of x; a pass of the whole team
    Planes<const T> unshuffled(const Memory& memory, int b, Team team) const {
        Planes<const T> given = grad_out(b);
        if (!shuffled()) return given;
        if (!plan_.channels_last) {
            given.half = plan_.channels / 2;
            return given;
        }
        T* to = static_cast<T*>(memory.own[team.first].sample);
        shuffle_pixels<false>(layout_, part(plan_.pixels(), team), given.data, to);
        team.sync();
        return {to};
    }

    // From the gradients of a sample's statistics to what a pixel is given
    void finish(const Memory& memory, int b) const {
        const Strip& to = memory.grads.values[0];
        const int count = plan_.columns();
        const float share = 1.0f / static_cast<float>(plan_.pixels());
        float *first = column(to, b, count, 0), *second = first + to.stride;
        const auto all = [&](auto&& f) { for_lanes(0, plan_.channels, f); };
        switch (plan_.pool) {
            case Pool::weighted: return;
            case Pool::mean: return all([&](int c, auto m) { store(first + c, load(first + c, m) * share, m); });
            case Pool::mean_max: {
                const float* ties = memory.ties + b * plan_.stride();
                return all([&](int c, auto m) {
                    store(first + c, load(first + c, m) * share, m);
                    store(second + c, load(second + c, m) / load(ties + c, m), m);
                });
            }
            case Pool::axes:
                for (int i = 0; i < count; ++i)
                    all([&](int c, auto m) {
                        float* d = column(to, b, count, i) + c;
                        store(d, load(d, m) * (1.0f / (i < plan_.height ? plan_.width : plan_.height)), m);
                    });
                return;
            case Pool::mean_var: break;
        }
        const Strip &level = memory.levels.values.back(), &d_level = memory.grads.values.back();
        const float *q = column(level, b, 3, 0), *a = column(level, b, 3, 1);
        const float *d_a = column(d_level, b, 3, 1), *d_b = column(d_level, b, 3, 2);
        all([&](int c, auto m) {  // d = x - mean
            const V through = 2.0f * load(q + c, m) * load(d_a + c, m) + load(a + c, m) * load(d_b + c, m);
            store(first + c, (load(first + c, m) - through) * share, m);
            store(second + c, load(second + c, m) * (2.0f * share), m);
        });
    }

    void gradient(const Memory& memory, int b, Team team) const {
        const Strip &level = memory.levels.values.back(), &pooled = memory.levels.values[0],
                    &d = memory.grads.values[0];
        const int count = plan_.columns();
        const Maps<0> no_maps{};
        const Planes<T> out{static_cast<T*>(args_.grad_x) + b * plan_.sample()};
        const float* share = column(d, b, count, 0);
        switch (plan_.product) {
            case Product::channels: {
                const float* gate = column(level, b, 1, 0);
                if (plan_.pool == Pool::weighted)
                    return map_channels(
                        layout_, mine(team), Vectors<2>{gate, share}, no_maps, out,
                        [](const V* k, const V*, V g, V w) { return g * k[0] + w * k[1]; }, grad_out(b),
                        Planes<const float>{memory.params.of(0)});
                if (!has_max())
                    return map_channels(
                        layout_, mine(team), Vectors<2>{gate, share}, no_maps, out,
                        [](const V* k, const V*, V g) { return g * k[0] + k[1]; }, grad_out(b));
                return map_channels(
                    layout_, mine(team), Vectors<4>{gate, share, column(d, b, 2, 1), column(pooled, b, 2, 1)}, no_maps,
                    out, [](const V* k, const V*, V g, V v) { return g * k[0] + k[1] + (v == k[3] ? k[2] : V{}); },
                    grad_out(b), x(b));
            }
            case Product::space:
                return map_channels(
                    layout_, mine(team),
                    Vectors<4>{column(level, b, 1, 0), share, column(d, b, 2, 1), column(pooled, b, 2, 1)},
                    maps_of(memory, b), out,
                    [](const V* k, const V* n, V g, V v) {
                        return of_gated(n, v * k[0], g) * k[0] + k[1] + (v == k[3] ? k[2] : V{});
                    },
                    grad_out(b), x(b));
            case Product::axes: {
                const Strip gates{column(level, b, count, 0), level.stride}, given{column(d, b, count, 0), d.stride};
                return map_axes<2>(
                    layout_, mine(team), {gates, given}, memory.own[team.thread(team.rank)].axes, out.data,
                    [](const V* row, const V* column, V g) { return g * row[0] * column[0] + (row[1] + column[1]); },
                    grad_out(b).data);
            }
            default: break;
        }
        const Vectors<6> numbers{
            column(pooled, b, 2, 0), column(level, b, 3, 0), column(level, b, 3, 1), column(level, b, 3, 2), share,
            column(d, b, 2, 1)};
        map_channels(
            layout_, mine(team), numbers, no_maps, out,
            [](const V* k, const V*, V g, V v) {
                const V d = v - k[0];
                const Sigmoid s(quadratic(d, k[1], k[2], k[3]));
                return g * (s.value + v * s.slope * (2.0f * k[1] * d + k[2])) + k[4] + k[5] * d;
            },
            unshuffled(memory, b, team), x(b));
    }

    // The parameters' gradients: one thread's part of the sums of all
    void write(const Memory& memory, int thread, int threads) const {
        for (size_t i = first_summed(); i < plan_.numels.size(); ++i) {
            const int64_t size = memory.params.size(static_cast<int>(i));
            float* total = memory.sums[0][i];
            float* to = static_cast<float*>(args_.grad_params[i]);
            const Stage* taps = memory.params.along_axes(static_cast<int>(i));
            for (int64_t j = size * thread / threads; j < size * (thread + 1) / threads; ++j) {
                float value = total[j];
                for (int other = 1; other < threads; ++other) value += memory.sums[other][i][j];
                if (!taps) {
                    to[j] = value;
                } else {
                    const int64_t stride = GatesPlan::stride(taps->in), c = j % stride;
                    if (c < taps->in) to[c * taps->count + j / stride] = value;
                }
            }
        }
    }

    const GatesPlan& plan_;
    const Layout layout_;
    const BackwardArgs& args_;
};

}  // namespace

void backward(const GatesPlan& plan, const BackwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { GatesBackward<typename decltype(element)::type>(plan, args).run(); });
}

}  // namespace fastattn::FASTATTN_ISA
