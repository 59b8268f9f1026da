// Aggressive convolution pooling backward at one instruction-set level: the levels are formed anew from x. The algebra
// is derived in fastattn/interaction/reference.py.
#include "../run.h"
#include "levels.h"

namespace fastattn::FASTATTN_ISA {
namespace {

struct AcpGradients {
    std::vector<DepthwiseGradients> convs;
    std::vector<PointwiseGradients> proj;  // as the parameters

    void arrange(const AcpPlan& plan, Sums& sums) {
        for (int kernel : plan.kernels) convs.push_back(sums.depthwise(plan.channels, kernel));
        for (int i = 0; i < plan.matrices(); ++i) proj.push_back(sums.pointwise(plan.channels, plan.channels));
    }

    // One thread's part
    void write(const AcpPlan& plan, void* const* tensors, int thread, int threads) const {
        Writer writer(tensors, thread, threads);
        const int channels = plan.channels;
        for (const DepthwiseGradients& conv : convs) writer.depthwise(conv, channels);
        writer.next([&](float* to) {
            for (size_t i = 0; i < proj.size(); ++i)
                Writer::matrix(proj[i], channels, channels, to + i * channels,
                               static_cast<int64_t>(proj.size()) * channels);
        });
        writer.copy(proj[0].bias, channels);
    }
};

template <class T>
class AcpBackward {
public:
    using Params = AcpParams;
    using Gradients = AcpGradients;

    struct State {
        Levels levels;
        Map grad_out;
        std::vector<Map> grads;      // of the levels
        std::vector<Map> projected;  // gradients of the projected levels, from 1 on, where each is projected by itself
        Map sum;                     // of the levels, else

        State(const AcpPlan& plan, const AcpParams& params, Bump& bump)
            : levels(plan, params, true, bump),
              grad_out(Map::take(bump, plan.channels, plan.height, plan.width)) {
            const auto like = [&](const Map& map) { return Map::take(bump, plan.channels, map.height, map.width); };
            for (const Resized& level : levels.maps) {
                grads.push_back(like(level.map));
                projected.push_back(plan.sum || projected.empty() ? grad_out : like(level.map));
            }
            if (plan.sum) sum = like(grad_out);
        }
    };

    struct Own {
        float* convolved;  // one block's map or its gradient, padded for any layer

        Own(const AcpPlan& plan, Bump& bump) {
            int pad = 0;
            for (int kernel : plan.kernels) pad = std::max(pad, kernel / 2);
            convolved = Map::take(bump, L, plan.height, plan.width, pad).data;
        }
    };

    AcpBackward(const AcpPlan& plan, const AcpParams& params, const BackwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& all_own, const AcpGradients& out) const {
        float* own = all_own[team.thread(team.rank)].convolved;
        const int channels = plan_.channels;
        const int64_t offset = index * plan_.channels * plan_.pixels();
        const Tensor<const T> x{static_cast<const T*>(args_.x) + offset, channels, plan_.channels_last};
        const Tensor<const T> grad_out{static_cast<const T*>(args_.grad_out) + offset, channels, plan_.channels_last};
        const Range mine = part(blocks(channels), team), all{0, blocks(channels)}, outputs = part(channels, team);

        for (int b = mine.begin; b < mine.end; ++b) {
            x.fetch(s.levels.maps[0].map, b);
            grad_out.fetch(s.grad_out, b);
            s.levels.build(b, {own, plan_.height, plan_.width, 0});
            add_sums(s.grad_out, b, out.proj[0].bias + b * L);
            if (plan_.sum) add_levels(s, b);
            else
                for (int i = 1; i <= plan_.layers(); ++i) shrink(s.grad_out, s.levels.maps[i], s.projected[i], b);
        }
        team.sync();
        for (int i = 0; i < plan_.matrices(); ++i) {
            const Map &from = s.projected[i], &to = s.grads[i];
            product(from, {0, channels}, params_.proj[i].transposed, nullptr, to, all, part(from.height, team),
                    {0, from.width}, false);
            gram(from, outputs, plan_.sum ? s.sum : s.levels.maps[i].map, all,
                 out.proj[i].weights + outputs.begin * padded(channels), padded(channels));
        }
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) {
            for (int i = 1; i <= plan_.layers() && plan_.sum; ++i) shrink(s.grads[0], s.levels.maps[i], s.grads[i], b);
            for (int i = plan_.layers(); i > 0; --i) layer(s, i - 1, b, own, out.convs[i - 1]);
            if (args_.grad_x)
                Tensor<T>{static_cast<T*>(args_.grad_x) + offset, channels, plan_.channels_last}.put(s.grads[0], b, b);
        }
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    INLINE_BODY void add_levels(const State& s, int b) const {
        for (int y = 0; y < plan_.height; ++y)
            for (int x = 0; x < plan_.width; ++x) {
                V total{};
                for (const Resized& level : s.levels.maps) total += load(level.at(b, y, x));
                store(s.sum.at(b, y, x), total);
            }
    }

    // to = what a resized map's gradient gives to the map
    INLINE_BODY void shrink(const Map& grad, const Resized& like, const Map& to, int b) const {
        std::fill(to.at(b), to.at(b) + to.block(), 0.0f);
        for (int y = 0; y < plan_.height; ++y)
            for (int x = 0; x < plan_.width; ++x) {
                float* p = to.at(b, like.rows[y], 0) + like.columns[x];
                store(p, load(p) + load(grad.at(b, y, x)));
            }
    }

    // From the gradient of a pooled level to that of the one before
    INLINE_BODY void layer(const State& s, int index, int b, float* own, const DepthwiseGradients& out) const {
        const DepthwiseParams& p = params_.convs[index];
        const Map &before = s.levels.maps[index].map, &grad = s.grads[index + 1];
        const Map convolved{own, before.height, before.width, p.kernel / 2};
        const int size = plan_.pool_size;
        const int32_t* places = s.levels.places[index + 1] + b * grad.pixels() * L;
        clear_pads(convolved, 0);
        for (int y = 0; y < grad.height; ++y)
            for (int x = 0; x < grad.width; ++x, places += L) {
                const int bottom = std::min(before.height, (y + 1) * size),
                          right = std::min(before.width, (x + 1) * size);
                const V g = load(grad.at(b, y, x));
                I place;
                std::memcpy(&place, places, sizeof place);
                for (int i = y * size; i < bottom; ++i)
                    for (int j = x * size; j < right; ++j)
                        store(convolved.at(0, i, j), place == (I{} + ((i - y * size) * size + j - x * size)) ? g : V{});
            }
        depthwise(convolved, 0, p.flipped + b * p.block(), p.kernel, 1, V{}, s.grads[index], b, true);
        depthwise_taps(convolved, 0, before, b, p.kernel, 1, out.at(b));
        add_sums(convolved, 0, out.bias + b * L);
    }

    const AcpPlan& plan_;
    const AcpParams& params_;
    const BackwardArgs& args_;
};

}  // namespace

void backward(const AcpPlan& plan, const BackwardArgs& args) { run<AcpBackward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
