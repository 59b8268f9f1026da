// SCSA, SMSA and PCSA forward at one instruction-set level. The algebra is derived in fastattn/scsa/reference.py.
#include "../workspace.h"
#include "sample.h"

namespace fastattn::FASTATTN_ISA {
namespace {

constexpr int64_t kCachedBytes = 1 << 20;  // a contiguous sample above this size is walked group by group

template <class Passes, class T>
class Forward {
    using Map = typename Passes::Map;

public:
    Forward(const ScsaPlan& plan, const Params& params, const ScsaForwardArgs& args) : plan_(plan), params_(params), args_(args) {}

    static int64_t shared_size(const ScsaPlan& plan) { return Sample::size(plan); }
    static int64_t private_size(const ScsaPlan& plan) {
        return Passes::scratch_size(plan) + Projections::size(plan) + attention_scratch(plan) + 64;
    }

    void sample(int index, Team team, float* shared, float* own) const {
        const T* input = static_cast<const T*>(args_.x) + index * plan_.channels * plan_.pixels;
        T* out = static_cast<T*>(args_.out) + index * plan_.channels * plan_.pixels;
        Bump bump(shared), mine(own);
        Sample s(plan_, params_, bump, args_.saved ? args_.saved + index * plan_.saved_size : nullptr, false);
        const Passes passes(plan_, mine.take(Passes::scratch_size(plan_)));
        const Range range = slice(plan_.channels, team.rank, team.size);
        const Map* x = passes.fetch(input, range, 0);

        const bool large = plan_.channels * plan_.pixels * int64_t{sizeof(T)} > kCachedBytes;
        const bool planes = !plan_.channels_last && static_cast<const void*>(x) == input;  // one after another, where they were
        const bool by_groups = large && planes && plan_.spatial && !team.shared && plan_.channels / 4 >= L / 2;
        const auto group = [&](int i) { return Range{i * plan_.channels / 4, (i + 1) * plan_.channels / 4}; };

        if (by_groups)
            for (int i = 0; i < 4; ++i) gate_and_pool(passes, x, group(i), team, s);
        else
            gate_and_pool(passes, x, range, team, s);
        if (plan_.channel) {
            team.sync();
            Projections p(plan_, mine);
            project(plan_, params_, s.y, s.statistics, p);
            attend(plan_, range, p, s.rows, args_.saved != nullptr, mine.take(attention_scratch(plan_)));
            if (plan_.softmax_gate) team.sync();
            channel_gate(plan_, range, s.rows.o, s.g);
        }
        const Share share = written_share<Passes>(plan_, range, team);
        if (by_groups)  // the last group is still in cache
            for (int i = 3; i >= 0; --i) passes.gated_product(x, group(i), share.rows, s.h.a, s.w.a, s.g, out);
        else
            passes.gated_product(x, share.channels, share.rows, s.h.a, s.w.a, s.g, out);
    }

private:
    void gate_and_pool(const Passes& passes, const Map* x, Range range, Team team, const Sample& s) const {
        if (plan_.spatial) {
            passes.axis_means(x, range, s.mean_h, s.mean_w);
            convolve(plan_, params_, range, s.h);
            convolve(plan_, params_, range, s.w);
            team.sync();
            normalize_and_gate(plan_, range, s.h);
            normalize_and_gate(plan_, range, s.w);
        }
        if (plan_.channel) {
            passes.gated_pool(x, range, s.h.a, s.w.a, s.y, s.argmax);
            pooled_statistics(plan_, range, s.y, s.statistics);
        }
    }

    const ScsaPlan& plan_;
    const Params& params_;
    const ScsaForwardArgs& args_;
};

template <class Passes, class T>
void run(const ScsaPlan& plan, const ScsaForwardArgs& args) {
    using Work = Forward<Passes, T>;
    const int limit = useful_threads(plan.batch * plan.channels * plan.pixels, args.threads);
    const int64_t shared = round_up(Work::shared_size(plan), 64), own = round_up(Work::private_size(plan), 64);
    const int64_t param_size = round_up(Params::size(plan), 64);
    float* memory = workspace(param_size + limit * (shared + own));
    float* shared_buffers = memory + param_size;         // [team]
    float* own_buffers = shared_buffers + limit * shared;  // [thread]
    const Params params(plan, memory);
    const Work work(plan, params, args);
#pragma omp parallel num_threads(limit)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        read_params(plan, args.params, slice(plan.channels, thread, threads), params);
#pragma omp barrier
        for_samples(plan.batch, thread, threads, [&](int index, Team team) {
            work.sample(index, team, shared_buffers + team.first * shared, own_buffers + thread * own);
        });
    }
}

}  // namespace

void scsa_forward(const ScsaPlan& plan, const ScsaForwardArgs& args) {
    with_passes(plan, [&](auto passes, auto element) { run<typename decltype(passes)::type, typename decltype(element)::type>(plan, args); });
}

}  // namespace fastattn
