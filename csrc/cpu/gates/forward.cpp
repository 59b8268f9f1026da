// The gates forward at one instruction-set level: statistics, the steps to the gates, the product.
#include "frame.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class T>
class GatesForward {
public:
    GatesForward(const GatesPlan& plan, const ForwardArgs& args) : plan_(plan), layout_(layout_of(plan)), args_(args) {}

    void run() {
        const int limit = useful_threads(plan_.elements(), args_.threads);
        Bump bump = Bump::measure();
        CallMemory(plan_, layout_, args_.saved, limit, bump);
        bump = Bump(workspace(bump.taken()));
        CallMemory memory(plan_, layout_, args_.saved, limit, bump);
#pragma omp parallel num_threads(limit)
        {
            const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
            memory.params.read(args_.params, thread, threads);
#pragma omp barrier
            const Steps steps(plan_, memory.params, memory.levels);
            float* scratch = memory.own[thread].steps;
            const auto each = [&](auto&& f) { for_samples(plan_.batch, thread, threads, f); };
            const auto own = [&](Team team) -> const OwnMemory& { return memory.own[team.thread(team.rank)]; };
            if (!plan_.joint()) {
                each([&](int b, Team team) {
                    pool(memory, b, team, own(team));
                    team.sync();
                    if (!team.rank)
                        for (size_t i = 0; i < plan_.stages.size(); ++i)
                            steps.forward(static_cast<int>(i), b, b + 1, scratch, nullptr);
                    team.sync();
                    if (plan_.product == Product::space) {
                        logits(memory, b, team, own(team));
                        if (!team.rank) gates(memory, b, norm(memory));
                        team.sync();
                    }
                    product(memory, b, team, own(team));
                });
            } else {
                each([&](int b, Team team) { pool(memory, b, team, own(team)); });
#pragma omp barrier
                float* statistics = memory.statistics;
                all_steps(plan_, false, thread, threads, [&](int stage, int begin, int end) {
                    steps.forward(stage, begin, end, scratch, statistics);
                    if (plan_.stages[stage].step == Step::batch_norm_of_batch && statistics)
                        statistics += 2 * plan_.stages[stage].in;
                });
#pragma omp barrier
                if (plan_.product == Product::space) {
                    each([&](int b, Team team) { logits(memory, b, team, own(team)); });
#pragma omp barrier
                    const SpaceNorm normal = norm(memory);
#pragma omp barrier
                    if (!thread && plan_.of_batch && memory.statistics) {
                        float* last = memory.statistics + plan_.statistics() - 2;
                        last[0] = normal.mean, last[1] = normal.variance;
                    }
                    for (int b = plan_.batch * thread / threads; b < plan_.batch * (thread + 1) / threads; ++b)
                        gates(memory, b, normal);
#pragma omp barrier
                }
                each([&](int b, Team team) { product(memory, b, team, own(team)); });
            }
        }
        trim_workspace();
    }

private:
    Planes<const T> x(int b) const { return {static_cast<const T*>(args_.x) + b * plan_.sample()}; }
    float* column(const Strip& level, int b, int count, int i) const { return level.at(int64_t{b} * count + i); }

    void pool(const CallMemory& memory, int b, Team team, const OwnMemory& own) const {
        const Strip& level = memory.levels.values[0];
        const Range mine = slice(plan_.channels, team.rank, team.size);
        const int count = plan_.columns();
        float* first = column(level, b, count, 0);
        const Vectors<0> none{};
        const Maps<0> no_maps{};
        const auto add = [](auto, const V*, const V*, V* sum, V v) { sum[0] += v; };
        switch (plan_.pool) {
            case Pool::weighted: {
                const Planes<const float> weights{memory.params.of(0)};
                sum_channels<1>(
                    layout_, mine, none, no_maps, {first},
                    [](auto, const V*, const V*, V* sum, V v, V w) { sum[0] += v * w; }, x(b), weights);
                return;
            }
            case Pool::axes: {
                const Strip to{first, level.stride};
                sum_axes<0>(
                    layout_, mine, {}, own.axes, to,
                    [](const V*, const V*, V& row, V& down, V v) { row += v, down += v; }, x(b).data);
                for (int i = 0; i < count; ++i)
                    divide(to.at(i), mine, static_cast<float>(i < plan_.height ? plan_.width : plan_.height));
                return;
            }
            default: {
                sum_channels<1>(layout_, mine, none, no_maps, {first}, add, x(b));
                const auto pixels = static_cast<float>(plan_.pixels());
                divide(first, mine, pixels);
                float* second = first + level.stride;
                if (plan_.pool == Pool::mean_max) max_channels(layout_, mine, second, x(b).data);
                if (plan_.pool != Pool::mean_var) return;
                sum_channels<1>(
                    layout_, mine, Vectors<1>{first}, no_maps, {second},
                    [](auto m, const V* k, const V*, V* sum, V v) {
                        const V d = keep(v - k[0], m);
                        sum[0] += d * d;
                    },
                    x(b));
                divide(second, mine, pixels);
            }
        }
    }

    static void divide(float* numbers, Range range, float by) {
        for_lanes(range.begin, range.end, [&](int c, auto m) { store(numbers + c, load(numbers + c, m) / by, m); });
    }

    // The convolution of the mean and the maximum over the gated channels
    void logits(const CallMemory& memory, int b, Team team, const OwnMemory& own) const {
        const int64_t pixels = plan_.pixels();
        float *mean = memory.maps + 2 * b * pixels, *most = mean + pixels;
        const Vectors<1> gate{column(memory.levels.values.back(), b, 1, 0)};
        const Range mine = part(pixels, team);
        sum_pixels<2>(
            layout_, mine, gate, Maps<0>{}, {0.0f, kLowest}, {mean, most},
            [](auto m, const V* k, const V*, V* result, V v) {
                result[0] = fused(v, keep(k[0], m), result[0]);
                result[1] = max(or_lowest(v * k[0], m), result[1]);
            },
            [](int i, V v) { return i ? largest(v) : sum(v); }, x(b).data);
        divide(mean, mine, static_cast<float>(plan_.channels));
        team.sync();
        if (!team.rank)
            convolve(Padded::of(plan_, own.padded, 2, mean), 2, memory.params.of(plan_.space_param()), false,
                     memory.gates + b * pixels);
    }

    SpaceNorm norm(const CallMemory& memory) const {
        const auto p = [&](int i) { return *memory.params.of(plan_.space_param() + i); };
        SpaceNorm norm{0, 0, plan_.epsilon, p(1), p(2)};
        if (plan_.of_batch) norm.measure(memory.gates, plan_.batch * plan_.pixels());
        else norm.mean = p(3), norm.variance = p(4);
        return norm;
    }
    void gates(const CallMemory& memory, int b, const SpaceNorm& norm) const {
        float* of = memory.gates + b * plan_.pixels();
        norm.gate(of, plan_.pixels(), of);
    }

    void product(const CallMemory& memory, int b, Team team, const OwnMemory& own) const {
        const Range mine = slice(plan_.channels, team.rank, team.size);
        const Strip& level = memory.levels.values.back();
        Planes<T> out{static_cast<T*>(args_.out) + b * plan_.sample()};
        const Maps<0> no_maps{};
        switch (plan_.product) {
            case Product::channels:
                return map_channels(
                    layout_, mine, Vectors<1>{column(level, b, 1, 0)}, no_maps, out,
                    [](const V* k, const V*, V v) { return v * k[0]; }, x(b));
            case Product::space:
                return map_channels(
                    layout_, mine, Vectors<1>{column(level, b, 1, 0)}, Maps<1>{memory.gates + b * plan_.pixels()}, out,
                    [](const V* k, const V* n, V v) { return v * k[0] * n[0]; }, x(b));
            case Product::axes: {
                const Strip gates{column(level, b, plan_.columns(), 0), level.stride};
                return map_axes<1>(
                    layout_, mine, {gates}, own.axes, out.data,
                    [](const V* row, const V* column, V v) { return v * row[0] * column[0]; }, x(b).data);
            }
            default: break;
        }
        const bool shuffled = plan_.product == Product::shuffled;
        Planes<T> to = out;
        if (shuffled && plan_.channels_last) to.data = static_cast<T*>(memory.own[team.first].sample);
        else if (shuffled) to.half = plan_.channels / 2;
        const Vectors<4> numbers{column(memory.levels.values[0], b, 2, 0), column(level, b, 3, 0),
                                 column(level, b, 3, 1), column(level, b, 3, 2)};
        map_channels(
            layout_, mine, numbers, no_maps, to,
            [](const V* k, const V*, V v) { return v * sigmoid(quadratic(v - k[0], k[1], k[2], k[3])); }, x(b));
        if (to.data == out.data) return;
        team.sync();
        shuffle_pixels<true>(layout_, part(plan_.pixels(), team), to.data, out.data);
        team.sync();
    }

    const GatesPlan& plan_;
    const Layout layout_;
    const ForwardArgs& args_;
};

}  // namespace

void forward(const GatesPlan& plan, const ForwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { GatesForward<typename decltype(element)::type>(plan, args).run(); });
}

}  // namespace fastattn::FASTATTN_ISA
