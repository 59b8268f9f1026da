// Aggressive convolution pooling forward at one instruction-set level. The algebra is derived in
// fastattn/interaction/reference.py.
#include "../run.h"
#include "levels.h"

namespace fastattn::FASTATTN_ISA {
namespace {

// to (one row) = start, or zero, + the resized maps from `first` on
INLINE_BODY inline void add_resized(const std::vector<Resized>& maps, size_t first, int b, int y, V start, int width,
                                    float* to) {
    for (int x = 0; x < width; ++x) {
        V s = start;
        for (size_t i = first; i < maps.size(); ++i) s += load(maps[i].at(b, y, x));
        store(to + int64_t{x} * L, s);
    }
}

template <class T>
class AcpForward {
public:
    using Params = AcpParams;
    using Gradients = NoGradients;

    struct State {
        Levels levels;
        Map out;
        std::vector<Resized> projected;  // of each level; the finest's is `out`
        Map sum;                         // of the levels

        State(const AcpPlan& plan, const AcpParams& params, Bump& bump)
            : levels(plan, params, false, bump),
              out(Map::take(bump, plan.channels, plan.height, plan.width)) {
            if (plan.sum) sum = Map::take(bump, plan.channels, plan.height, plan.width);
            for (int i = 0; i <= plan.layers() && !plan.sum; ++i) {
                const Resized& like = levels.maps[i];
                projected.push_back({i ? Map::take(bump, plan.channels, like.map.height, like.map.width) : out,
                                     like.rows, like.columns});
            }
        }
    };

    struct Own {
        Map convolved;  // one block

        Own(const AcpPlan& plan, Bump& bump) : convolved(Map::take(bump, L, plan.height, plan.width)) {}
    };

    AcpForward(const AcpPlan& plan, const AcpParams& params, const ForwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& own, const NoGradients&) const {
        const int channels = plan_.channels;
        const int64_t offset = index * plan_.channels * plan_.pixels();
        const Tensor<const T> x{static_cast<const T*>(args_.x) + offset, channels, plan_.channels_last};
        const Tensor<T> out{static_cast<T*>(args_.out) + offset, channels, plan_.channels_last};
        const Range mine = part(blocks(channels), team), all{0, blocks(channels)}, rows = part(plan_.height, team);
        const Map& finest = s.levels.maps[0].map;

        for (int b = mine.begin; b < mine.end; ++b) {
            x.fetch(finest, b);
            s.levels.build(b, own[team.thread(team.rank)].convolved);
            for (int y = 0; y < plan_.height && plan_.sum; ++y)
                add_resized(s.levels.maps, 0, b, y, V{}, plan_.width, s.sum.at(b, y, 0));
        }
        team.sync();
        for (size_t i = 1; i < s.projected.size(); ++i) {
            const Map& to = s.projected[i].map;
            product(s.levels.maps[i].map, {0, channels}, params_.proj[i].weights, nullptr, to, all,
                    part(to.height, team), {0, to.width}, false);
        }
        team.sync();
        for (int b = 0; b < all.end; ++b)
            for (int y = rows.begin; y < rows.end; ++y)
                add_resized(s.projected, 1, b, y, load(params_.proj[0].bias + b * L), plan_.width, s.out.at(b, y, 0));
        product(plan_.sum ? s.sum : finest, {0, channels}, params_.proj[0].weights, nullptr, s.out, all, rows,
                {0, plan_.width}, true);
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) out.put(s.out, b, b);
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    const AcpPlan& plan_;
    const AcpParams& params_;
    const ForwardArgs& args_;
};

}  // namespace

void forward(const AcpPlan& plan, const ForwardArgs& args) { run<AcpForward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
