// Aggressive convolution pooling forward at one instruction-set level. The algebra is derived in fastattn/reference/interaction.py.
#include "../workspace.h"
#include "levels.h"

namespace fastattn::FASTATTN_ISA {
namespace {

// Buffers of one sample, shared by its team
struct AcpState {
    Levels levels;
    Map out;
    std::vector<Resized> projected;  // of each level; the finest's is `out`
    Map sum;                         // of the levels

    AcpState(const AcpPlan& plan, const AcpParams& params, Bump& bump, bool measuring)
        : levels(plan, params, false, bump, measuring), out(Map::take(bump, plan.channels, plan.height, plan.width)) {
        if (plan.sum) sum = Map::take(bump, plan.channels, plan.height, plan.width);
        for (int i = 0; i <= plan.layers() && !plan.sum; ++i) {
            const Resized& like = levels.maps[i];
            projected.push_back({i ? Map::take(bump, plan.channels, like.map.height, like.map.width) : out, like.rows, like.columns});
        }
    }
};

// to (one row) = start, or zero, + the resized maps from `first` on
INLINE_BODY inline void add_resized(const std::vector<Resized>& maps, size_t first, int b, int y, V start, int width, float* to) {
    for (int x = 0; x < width; ++x) {
        V s = start;
        for (size_t i = first; i < maps.size(); ++i) s += load(maps[i].at(b, y, x));
        store(to + int64_t{x} * L, s);
    }
}

template <class T>
void sample(const AcpPlan& plan, const AcpParams& params, const AcpForwardArgs& args, int index, Team team, float* shared, float* own) {
    Bump bump(shared);
    const AcpState s(plan, params, bump, false);
    const int channels = plan.channels;
    const int64_t offset = index * plan.channels * plan.pixels();
    const Tensor<const T> x{static_cast<const T*>(args.x) + offset, channels, plan.channels_last};
    const Tensor<T> out{static_cast<T*>(args.out) + offset, channels, plan.channels_last};
    const Range mine = part(blocks(channels), team), all{0, blocks(channels)}, rows = part(plan.height, team);
    const Map& finest = s.levels.maps[0].map;

    for (int b = mine.begin; b < mine.end; ++b) {
        x.fetch(finest, b);
        s.levels.build(b, {own, plan.height, plan.width, 0});
        for (int y = 0; y < plan.height && plan.sum; ++y) add_resized(s.levels.maps, 0, b, y, V{}, plan.width, s.sum.at(b, y, 0));
    }
    team.sync();
    for (size_t i = 1; i < s.projected.size(); ++i) {
        const Map& to = s.projected[i].map;
        product(s.levels.maps[i].map, {0, channels}, params.proj[i].weights, nullptr, to, all, part(to.height, team), {0, to.width}, false);
    }
    team.sync();
    for (int b = 0; b < all.end; ++b)
        for (int y = rows.begin; y < rows.end; ++y)
            add_resized(s.projected, 1, b, y, load(params.proj[0].bias + b * L), plan.width, s.out.at(b, y, 0));
    product(plan.sum ? s.sum : finest, {0, channels}, params.proj[0].weights, nullptr, s.out, all, rows, {0, plan.width}, true);
    team.sync();
    for (int b = mine.begin; b < mine.end; ++b) out.put(s.out, b, b);
    team.sync();  // before the next sample overwrites what another thread still reads
}

template <class T>
void run(const AcpPlan& plan, const AcpForwardArgs& args) {
    const int limit = useful_threads(plan.batch * plan.channels * plan.pixels(), args.threads);
    Bump sizes = Bump::measure();
    const AcpParams model(plan, false, sizes);
    const int64_t param_size = sizes.taken();
    AcpState(plan, model, sizes, true);
    const int64_t shared = sizes.taken() - param_size, own = round_up(plan.pixels() * L, 16);
    float* memory = workspace(param_size + limit * (shared + own));
    Bump bump(memory);
    const AcpParams params(plan, false, bump);
    float *shared_buffers = memory + param_size, *own_buffers = shared_buffers + limit * shared;
#pragma omp parallel num_threads(limit)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        params.read(plan, args.params, thread, threads);
#pragma omp barrier
        for_samples(plan.batch, thread, threads, [&](int index, Team team) {
            sample<T>(plan, params, args, index, team, shared_buffers + team.first * shared, own_buffers + thread * own);
        });
    }
    trim_workspace();
}

}  // namespace

void acp_forward(const AcpPlan& plan, const AcpForwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { run<typename decltype(element)::type>(plan, args); });
}

}  // namespace fastattn
