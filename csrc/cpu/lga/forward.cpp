// Local-global attention forward at one instruction-set level. The algebra is derived in fastattn/lga/reference.py.
#include "../run.h"
#include "features.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class T>
class LgaForward {
public:
    using Params = LgaParams;
    using Gradients = NoGradients;

    struct State {
        Mixture mixture;
        Map z, features, mixed;
        HeadState heads;

        State(const LgaPlan& plan, const LgaParams& params, Bump& bump)
            : mixture(plan, params, bump),
              z(Map::take(bump, plan.dim, plan.height, plan.width, plan.padding())),
              features(Map::take(bump, plan.dim, plan.height, plan.width)),
              mixed(Map::take(bump, plan.dim, plan.height, plan.width)),
              heads(plan, false, bump) {}
    };

    struct Own {
        float* scratch;  // of a head, or packed values

        Own(const LgaPlan& plan, Bump& bump)
            : scratch(bump.take(std::max(HeadState::scratch_size(plan), Packed::size(plan)))) {}
    };

    LgaForward(const LgaPlan& plan, const LgaParams& params, const ForwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& all_own, const NoGradients&) const {
        float* own = all_own[team.thread(team.rank)].scratch;
        const int64_t offset = index * plan_.dim * plan_.pixels();
        const Tensor<const T> x{static_cast<const T*>(args_.x) + offset, plan_.dim, plan_.channels_last};
        const Tensor<T> out{static_cast<T*>(args_.out) + offset, plan_.dim, plan_.channels_last};
        const int dim = plan_.dim;
        const Range mine = part(blocks(dim), team);
        const V total = splat(static_cast<float>(*params_.total));

        for (int b = mine.begin; b < mine.end; ++b) {
            x.fetch(s.mixture.x, b);
            s.mixture.convolve(b);
            for (int y = 0; y < plan_.height; ++y)
                for (int c = 0; c < plan_.width; ++c) store(s.mixed.at(b, y, c), total * load(s.mixture.x.at(b, y, c)));
        }
        team.sync();
        s.mixture.weigh(part(plan_.height, team));
        s.mixture.project(0, team);
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) {
            s.mixture.mix(b, s.z);
            if (args_.saved) Tensor<float>{args_.saved + offset, dim, plan_.channels_last}.put(s.z, b, b);
        }
        const Range read = feature_blocks(plan_);
        for (const ConvParams& conv : params_.convs) {
            for (int b = std::max(mine.begin, read.begin); b < mine.end; ++b)
                convolve(s.z, conv.depthwise, b, s.features, s.heads.means);
            team.sync();
            const Range slices = part(s.heads.slices.queries(), team);
            for (int slice = slices.begin; slice < slices.end; ++slice)
                s.heads.attend(slice, s.features, conv.heads, reinterpret_cast<double*>(own));
            team.sync();
            for (int b = mine.begin; b < mine.end; ++b) add_output(s.heads, s.features, b, *conv.share, s.mixed, own);
            team.sync();
        }
        const Range pixels = part(plan_.pixels(), team);
        linear(s.mixed.flat().columns(pixels), dim, params_.out.weights, params_.out.bias,
               s.features.flat().columns(pixels), {0, blocks(dim)});
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) out.put(s.features, b, b);
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    const LgaPlan& plan_;
    const LgaParams& params_;
    const ForwardArgs& args_;
};

}  // namespace

void forward(const LgaPlan& plan, const ForwardArgs& args) { run<LgaForward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
