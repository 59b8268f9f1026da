// Conceptual attention forward at one instruction-set level. The algebra is derived in fastattn/reference/interaction.py.
#include "../workspace.h"
#include "concepts.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class T>
void sample(const CatPlan& plan, const CatParams& params, const CatForwardArgs& args, int index, Team team, float* shared, float* own) {
    Bump bump(shared);
    const Concepts s(plan, params, bump);
    const int64_t offset = int64_t{index} * plan.tokens * plan.channels;
    const Tensor<const T> x{static_cast<const T*>(args.x) + offset, plan.channels, true};
    const Tensor<T> out{static_cast<T*>(args.out) + offset, plan.channels, true};
    const Range mine = part(s.all_channels.end, team);
    for (int b = mine.begin; b < mine.end; ++b) x.fetch(s.x, b);
    team.sync();
    s.build(team, own);
    product(s.back, {0, plan.concepts}, s.values.data, nullptr, s.x, s.all_channels, {0, 1}, part(plan.tokens, team), true);
    team.sync();
    for (int b = mine.begin; b < mine.end; ++b) out.put(s.x, b, b);
    team.sync();  // before the next sample overwrites what another thread still reads
}

template <class T>
void run(const CatPlan& plan, const CatForwardArgs& args) {
    const int limit = useful_threads(int64_t{plan.batch} * plan.tokens * plan.channels, args.threads);
    Bump sizes = Bump::measure();
    const CatParams model(plan, false, sizes);
    const int64_t param_size = sizes.taken();
    Concepts(plan, model, sizes);
    const int64_t shared = sizes.taken() - param_size, own = round_up(Concepts::scratch_size(plan), 16);
    float* memory = workspace(param_size + limit * (shared + own));
    Bump bump(memory);
    const CatParams params(plan, false, bump);
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

void cat_forward(const CatPlan& plan, const CatForwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { run<typename decltype(element)::type>(plan, args); });
}

}  // namespace fastattn
