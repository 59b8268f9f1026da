// SCSA, SMSA and PCSA forward at one instruction-set level. The algebra is derived in fastattn/scsa/reference.py.
#include "../run.h"
#include "sample.h"

namespace fastattn::FASTATTN_ISA {
namespace {

constexpr int64_t kCachedBytes = 1 << 20;  // a contiguous sample above this size is walked group by group

template <class Passes, class T>
class Forward {
    using Map = typename Passes::Map;

public:
    using Params = ScsaParams;
    using Gradients = NoGradients;

    struct State {
        float* memory;

        State(const ScsaPlan& plan, const ScsaParams&, Bump& bump) : memory(bump.take(Sample::size(plan))) {}
    };

    struct Own {
        float* memory;

        Own(const ScsaPlan& plan, Bump& bump)
            : memory(bump.take(Passes::scratch_size(plan) + Projections::size(plan) + attention_scratch(plan) + 64)) {}
    };

    Forward(const ScsaPlan& plan, const ScsaParams& params, const ForwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& shared, const std::vector<Own>& own, const NoGradients&) const {
        const T* input = static_cast<const T*>(args_.x) + index * plan_.channels * plan_.pixels;
        T* out = static_cast<T*>(args_.out) + index * plan_.channels * plan_.pixels;
        Bump bump(shared.memory), mine(own[team.thread(team.rank)].memory);
        Sample s(plan_, params_, bump, args_.saved ? args_.saved + index * plan_.saved_size() : nullptr, false);
        const Passes passes(plan_, mine.take(Passes::scratch_size(plan_)));
        const Range range = slice(plan_.channels, team.rank, team.size);
        const Map* x = passes.fetch(input, range, 0);

        const bool large = plan_.channels * plan_.pixels * int64_t{sizeof(T)} > kCachedBytes;
        // one after another, where they were
        const bool planes = !plan_.channels_last && static_cast<const void*>(x) == input;
        const bool by_groups = large && planes && plan_.spatial && !team.shared && plan_.channels / 4 >= L / 2;
        const auto group = [&](int i) { return Range{i * plan_.channels / 4, (i + 1) * plan_.channels / 4}; };

        if (by_groups)
            for (int i = 0; i < 4; ++i) gate_and_pool(passes, x, group(i), team, s);
        else gate_and_pool(passes, x, range, team, s);
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
        else passes.gated_product(x, share.channels, share.rows, s.h.a, s.w.a, s.g, out);
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
    const ScsaParams& params_;
    const ForwardArgs& args_;
};

}  // namespace

void forward(const ScsaPlan& plan, const ForwardArgs& args) {
    with_passes(plan, [&](auto passes, auto element) {
        run_typed<Forward<typename decltype(passes)::type, typename decltype(element)::type>>(plan, args);
    });
}

}  // namespace fastattn::FASTATTN_ISA
