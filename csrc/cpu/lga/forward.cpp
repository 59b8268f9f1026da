// Local-global attention forward at one instruction-set level. The algebra is derived in fastattn/reference/lga.py.
#include "../workspace.h"
#include "features.h"

namespace fastattn::FASTATTN_ISA {
namespace {

// Buffers of one sample, shared by its team
struct State {
    Mixture mixture;
    Map z, features, mixed;
    HeadState heads;

    State(const LgaPlan& plan, const LgaParams& params, Bump& bump, bool measuring)
        : mixture(plan, params, bump, measuring),
          z(Map::take(bump, plan.dim, plan.height, plan.width, plan.padding())),
          features(Map::take(bump, plan.dim, plan.height, plan.width)),
          mixed(Map::take(bump, plan.dim, plan.height, plan.width)),
          heads(plan, false, bump) {}
};

template <class T>
void sample(const LgaPlan& plan, const LgaParams& params, const LgaForwardArgs& args, int index, Team team, float* shared, float* own) {
    Bump bump(shared);
    const State s(plan, params, bump, false);
    const int64_t offset = index * plan.dim * plan.pixels();
    const Tensor<const T> x{static_cast<const T*>(args.x) + offset, plan.dim, plan.channels_last};
    const Tensor<T> out{static_cast<T*>(args.out) + offset, plan.dim, plan.channels_last};
    const int dim = plan.dim;
    const Range mine = part(blocks(dim), team);
    const V total = splat(static_cast<float>(params.total));

    for (int b = mine.begin; b < mine.end; ++b) {
        x.fetch(s.mixture.x, b);
        s.mixture.convolve(b);
        for (int y = 0; y < plan.height; ++y)
            for (int c = 0; c < plan.width; ++c) store(s.mixed.at(b, y, c), total * load(s.mixture.x.at(b, y, c)));
    }
    team.sync();
    s.mixture.weigh(part(plan.height, team));
    s.mixture.project(0, team);
    team.sync();
    for (int b = mine.begin; b < mine.end; ++b) {
        s.mixture.mix(b, s.z);
        if (args.z) Tensor<float>{args.z + offset, dim, plan.channels_last}.put(s.z, b, b);
    }
    const Range read = feature_blocks(plan);
    for (const ConvParams& conv : params.convs) {
        for (int b = std::max(mine.begin, read.begin); b < mine.end; ++b) convolve(s.z, conv.depthwise, b, s.features, s.heads.means);
        team.sync();
        const Range slices = part(s.heads.slices.queries(), team);
        for (int slice = slices.begin; slice < slices.end; ++slice)
            s.heads.attend(slice, s.features, conv.heads, reinterpret_cast<double*>(own));
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) {
            const Packed packed = pack_values(s.heads, b, conv.share, own);
            product(s.features.flat(), packed.channels, packed.weights, packed.bias, s.mixed.flat().one(b), {0, 1}, {0, 1},
                    {0, s.features.flat().width}, true);
        }
        team.sync();
    }
    product(s.mixed.flat(), {0, dim}, params.out.weights, params.out.bias, s.features.flat(), {0, blocks(dim)}, {0, 1}, part(plan.pixels(), team), false);
    team.sync();
    for (int b = mine.begin; b < mine.end; ++b) out.put(s.features, b, b);
    team.sync();  // before the next sample overwrites what another thread still reads
}

int64_t shared_size(const LgaPlan& plan, const LgaParams& params) {
    Bump bump = Bump::measure();
    State(plan, params, bump, true);
    return bump.taken();
}

template <class T>
void run(const LgaPlan& plan, const LgaForwardArgs& args) {
    const int limit = useful_threads(plan.batch * plan.dim * plan.pixels(), args.threads);
    Bump nothing = Bump::measure();
    const LgaParams model(plan, args.params, false, nothing);  // sizes alone
    const int64_t param_size = nothing.taken(), shared = shared_size(plan, model);
    const int64_t own = round_up(std::max(HeadState::scratch_size(plan), Packed::size(plan)), 16);
    float* memory = workspace(param_size + limit * (shared + own));
    Bump bump(memory);
    LgaParams params(plan, args.params, false, bump);
    params.read_shares();
    float *shared_buffers = memory + param_size, *own_buffers = shared_buffers + limit * shared;
#pragma omp parallel num_threads(limit)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        params.read(thread, threads);
#pragma omp barrier
        for_samples(plan.batch, thread, threads, [&](int index, Team team) {
            sample<T>(plan, params, args, index, team, shared_buffers + team.first * shared, own_buffers + thread * own);
        });
    }
    trim_workspace();
}

}  // namespace

void lga_forward(const LgaPlan& plan, const LgaForwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { run<typename decltype(element)::type>(plan, args); });
}

}  // namespace fastattn
