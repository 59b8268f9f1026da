// Local-global attention backward at one instruction-set level: all is formed anew from x and z. The algebra is derived
// in fastattn/lga/reference.py.
#include "../run.h"
#include "features.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class T>
class LgaBackward {
public:
    using Params = LgaParams;
    using Gradients = LgaGradients;

    struct State {
        Mixture mixture;
        Map z, features, grad_out, mixed, grad_mixed, grad_z;
        std::vector<Map> grad_coarse, grad_depthwise;  // of each scale
        HeadState heads;
        double* grad_sums;  // [dim] of grad_mixed
        float* slopes;      // [scale + 1][plane] of the logits

        State(const LgaPlan& plan, const LgaParams& params, Bump& bump)
            : mixture(plan, params, bump),
              z(take(plan, bump, plan.padding())),
              features(take(plan, bump)),
              grad_out(take(plan, bump)),
              mixed(take(plan, bump)),
              grad_mixed(take(plan, bump)),
              grad_z(take(plan, bump)),
              heads(plan, true, bump),
              grad_sums(reinterpret_cast<double*>(bump.take(2 * padded(plan.dim)))),
              slopes(bump.take((plan.num_scales + 1) * mixture.plane)) {
            for (int i = 0; i < plan.num_scales; ++i) {
                // the finest of each takes the place of what is no longer needed
                const Map& like = mixture.depthwise[i];
                grad_coarse.push_back(i ? Map::take(bump, plan.dim, like.height, like.width) : mixture.coarse[0].map);
                grad_depthwise.push_back(i ? Map::take(bump, plan.dim, like.height, like.width) : features);
            }
        }

        static Map take(const LgaPlan& plan, Bump& bump, int pad = 0) {
            return Map::take(bump, plan.dim, plan.height, plan.width, pad);
        }
    };

    struct Own {
        Map grad_features, grad_x;  // one block
        double* grad_values;        // [d][row]
        int64_t row;
        double* scratch;
        float* packed;

        Own(const LgaPlan& plan, Bump& bump)
            : grad_features(Map::take(bump, L, plan.height, plan.width, plan.padding())),
              grad_x(Map::take(bump, L, plan.height, plan.width, 1)),
              row(padded(plan.head_dim()) + 2 * L) {
            grad_values = reinterpret_cast<double*>(bump.take(2 * row * plan.head_dim()));
            scratch = reinterpret_cast<double*>(bump.take(HeadState::scratch_size(plan)));
            packed = bump.take(Packed::size(plan));
        }
    };

    LgaBackward(const LgaPlan& plan, const LgaParams& params, const BackwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& all_own,
                const LgaGradients& grads) const {
        const Own& own = all_own[team.thread(team.rank)];
        const int dim = plan_.dim;
        const Range blocks_here = part(blocks(dim), team);
        const int64_t offset = index * plan_.dim * plan_.pixels();
        const auto tensor = [&](auto* data) {
            return Tensor<std::remove_pointer_t<decltype(data)>>{data ? data + offset : data, dim, plan_.channels_last};
        };

        for (int b = blocks_here.begin; b < blocks_here.end; ++b) {
            tensor(static_cast<const T*>(args_.x)).fetch(s.mixture.x, b);
            tensor(args_.saved).fetch(s.z, b);
            tensor(static_cast<const T*>(args_.grad_out)).fetch(s.grad_out, b);
            clear_pads(s.z, b);
            s.mixture.convolve(b);
            add_sums(s.grad_out, b, grads.out.bias + b * L);
            const V total = splat(static_cast<float>(*params_.total));
            for_pixels([&](int y, int x) { store(s.mixed.at(b, y, x), total * load(s.mixture.x.at(b, y, x))); });
            std::fill(s.grad_z.at(b), s.grad_z.at(b) + s.grad_z.block(), 0.0f);
        }
        team.sync();
        s.mixture.weigh(part(plan_.height, team));
        s.mixture.project(1, team);
        product(s.grad_out.flat(), {0, dim}, params_.out.transposed, nullptr, s.grad_mixed.flat(), {0, blocks(dim)},
                {0, 1}, part(plan_.pixels(), team), false);
        team.sync();
        for (int b = blocks_here.begin; b < blocks_here.end; ++b) {
            std::fill(s.grad_sums + b * L, s.grad_sums + (b + 1) * L, 0.0);
            add_sums(s.grad_mixed, b, s.grad_sums + b * L);
            const double through_x = sum_products(s.mixture.x, s.grad_mixed, b);
            for (double* alpha : grads.alphas) *alpha += through_x;
        }
        for (size_t i = 0; i < params_.convs.size(); ++i) convolution(s, own, team, i, grads);
        const Range outputs = part(dim, team);
        gram(s.grad_out, outputs, s.mixed, {0, blocks(dim)}, grads.out.weights + outputs.begin * padded(dim),
             padded(dim));
        scales(s, own, team, grads, tensor(static_cast<T*>(args_.grad_x)));
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    // f(row, column)
    template <class F>
    void for_pixels(F&& f) const {
        for (int y = 0; y < plan_.height; ++y)
            for (int x = 0; x < plan_.width; ++x) f(y, x);
    }

    // One convolution of z, its attention and what becomes of them
    void convolution(const State& s, const Own& own, Team team, size_t index, const LgaGradients& grads) const {
        const ConvParams& conv = params_.convs[index];
        const ConvGradients& grad = grads.convs[index];
        const HeadState& heads = s.heads;
        const Range blocks_here = part(blocks(plan_.dim), team), read = feature_blocks(plan_);
        for (int b = std::max(blocks_here.begin, read.begin); b < blocks_here.end; ++b)
            convolve(s.z, conv.depthwise, b, s.features, heads.means);
        team.sync();
        const Range slices = part(heads.slices.queries(), team);
        for (int slice = slices.begin; slice < slices.end; ++slice)
            heads.attend(slice, s.features, conv.heads, own.scratch);
        team.sync();
        for (int b = blocks_here.begin; b < blocks_here.end; ++b)
            add_output(heads, s.features, b, *conv.share, s.mixed, own.packed);
        const Range heads_here = part(plan_.num_heads, team);
        for (int head = heads_here.begin; head < heads_here.end; ++head) {
            const Range channels = heads.slices.channels(heads.slices.value(head), heads.slices.value(head));
            std::fill(own.grad_values, own.grad_values + heads.d * own.row, 0.0);
            gram(s.grad_mixed, heads.slices.channels(head, head), s.features, blocks_of(channels), own.grad_values,
                 own.row);
            const double output =
                heads.output_product(head, own.grad_values + channels.begin % L, own.row, s.grad_sums + head * heads.d);
            *grads.alphas[conv.branch] += output / static_cast<double>(plan_.branches[conv.branch].size());
            heads.attend_backward(head, conv.heads, *conv.share, own.grad_values + channels.begin % L, own.row,
                                  s.grad_sums + head * heads.d, grad.heads, own.scratch);
        }
        team.sync();
        for (int b = std::max(blocks_here.begin, read.begin); b < blocks_here.end; ++b) {
            gather_features(s, own, conv, b);
            const Map& g = own.grad_features;
            clear_pads(g, 0);
            depthwise(g, 0, conv.depthwise.flipped + b * conv.depthwise.block(), conv.depthwise.kernel, 1, V{},
                      s.grad_z, b, true);
            depthwise_taps(g, 0, s.z, b, conv.depthwise.kernel, 1, grad.depthwise.at(b));
            add_sums(g, 0, grad.depthwise.bias + b * L);
        }
        team.sync();  // before the next convolution overwrites the features
    }

    // The gradient of a block of features
    void gather_features(const State& s, const Own& own, const ConvParams& conv, int b) const {
        bool accumulate = false;
        const auto add = [&](const Packed& packed, const Map& from) {
            product(from, packed.channels, packed.weights, packed.bias, own.grad_features, {0, 1}, {0, plan_.height},
                    {0, plan_.width}, accumulate);
            accumulate = true;
        };
        add(pack_value_gradient(s.heads, b, *conv.share, own.packed), s.grad_mixed);
        if (plan_.released) return;
        add(pack_query_gradient(s.heads, b, own.packed), s.features);
        add(pack_key_gradient(s.heads, b, own.packed), s.features);
    }

    // From the gradient of z to that of x
    void scales(const State& s, const Own& own, Team team, const LgaGradients& grads, const Tensor<T>& grad_x) const {
        const Mixture& m = s.mixture;
        const int dim = plan_.dim, count = plan_.num_scales;
        const Range blocks_here = part(blocks(dim), team), all{0, blocks(dim)}, rows = part(plan_.height, team);
        for (int b = blocks_here.begin; b < blocks_here.end; ++b) shrink(s, b, grads);
        team.sync();
        for (int i = 0; i < count; ++i) {
            // of the finest the share is taken in only behind the product, which then serves the share's own gradient
            // too
            const Map from = i ? s.grad_coarse[i].flat() : s.grad_z.flat(), to = s.grad_depthwise[i].flat();
            const Range pixels = i ? part(to.width, team) : Range{rows.begin * plan_.width, rows.end * plan_.width};
            product(from, {0, dim}, params_.scales[i].pointwise.transposed, nullptr, to, all, {0, 1}, pixels, false);
            const Range outputs = part(dim, team);
            gram(s.grad_coarse[i], outputs, m.depthwise[i], all,
                 grads.scales[i].pointwise.weights + outputs.begin * padded(dim), padded(dim));
        }
        slope(s, rows, grads);
        team.sync();
        for (int b = blocks_here.begin; b < blocks_here.end; ++b) {
            gather_x(s, own.grad_x, b, grads);
            if (args_.grad_x) grad_x.put(own.grad_x, 0, b);
        }
    }

    // A block of the coarse maps' gradients, and of the position encoding's
    INLINE_BODY void shrink(const State& s, int b, const LgaGradients& grads) const {
        const Mixture& m = s.mixture;
        const auto add = [](float* to, V v) { store(to, load(to) + v); };
        for (int i = 0; i < plan_.num_scales; ++i) {
            const Resized to{s.grad_coarse[i], m.coarse[i].rows, m.coarse[i].columns};
            std::fill(to.map.at(b), to.map.at(b) + to.map.block(), 0.0f);
            const float* share = m.shares + (i + 1) * m.plane;
            for_pixels([&](int y, int x) {
                add(to.at(b, y, x), share[int64_t{y} * plan_.width + x] * load(s.grad_z.at(b, y, x)));
            });
            add_sums(to.map, b, grads.scales[i].pointwise.bias + b * L);
        }
        const Resized to{
            {grads.encoding, m.encoding.map.height, m.encoding.map.width, 0}, m.encoding.rows, m.encoding.columns};
        for_pixels([&](int y, int x) { add(to.at(b, y, x), load(s.grad_z.at(b, y, x))); });
    }

    // The gradients of the logits of some rows
    INLINE_BODY void slope(const State& s, Range rows, const LgaGradients& grads) const {
        const Mixture& m = s.mixture;
        const int count = plan_.num_scales;
        m.for_planes(rows, [&](int64_t p, int n) {
            V products[Mixture::kMaxShares][L] = {};
            for (int k = 0; k < n; ++k) {
                const int y = static_cast<int>((p + k) / plan_.width), x = static_cast<int>((p + k) % plan_.width);
                for (int b = 0; b < blocks(plan_.dim); ++b) {
                    const V g = load(s.grad_z.at(b, y, x));
                    products[0][k] += load(s.grad_depthwise[0].at(b, y, x)) * load(m.depthwise[0].at(b, y, x)) +
                                      load(params_.scales[0].pointwise.bias + b * L) * g;
                    for (int i = 1; i < count; ++i) products[i][k] += g * load(m.coarse[i].at(b, y, x));
                }
            }
            V grad[Mixture::kMaxShares], mean{};
            for (int i = 0; i < count; ++i) {
                grad[i] = sum_rows(products[i]);
                const V share = load_some(m.shares + (i + 1) * m.plane + p, n);
                mean += share * grad[i];
            }
            for (int i = 0; i <= count; ++i) {
                const V own = i ? grad[i - 1] : V{};
                const V slope = load_some(m.shares + i * m.plane + p, n) * (own - mean);
                Mixture::store_some(s.slopes + i * m.plane + p, slope, n);
                grads.attention.bias[i] += n == L ? sum(slope) : sum(keep(slope, Tail(n)));
            }
        });
    }

    static V load_some(const float* p, int n) { return n == L ? load(p, Full{}) : load(p, Tail(n)); }

    // A block of x's gradient
    INLINE_BODY void gather_x(const State& s, const Map& grad_x, int b, const LgaGradients& grads) const {
        const Mixture& m = s.mixture;
        const int count = plan_.num_scales + 1;
        const V total = splat(static_cast<float>(*params_.total));
        for_pixels([&](int y, int x) {
            V g = load(s.grad_z.at(b, y, x)) + total * load(s.grad_mixed.at(b, y, x));
            const float* slope = s.slopes + int64_t{y} * plan_.width + x;
            for (int i = 0; i < count; ++i)
                g += slope[i * m.plane] * load(params_.attention.transposed + (int64_t{b} * count + i) * L);
            store(grad_x.at(0, y, x), g);
        });
        for (int i = 0; i < count; ++i) {
            float* to = grads.attention.weights + i * padded(plan_.dim) + b * L;
            for (int y = 0; y < plan_.height; ++y) {
                const float* slope = s.slopes + i * m.plane + int64_t{y} * plan_.width;
                V row{};
                for (int x = 0; x < plan_.width; ++x) row += slope[x] * load(m.x.at(b, y, x));
                store(to, load(to) + row);
            }
        }
        for (int i = 0; i < plan_.num_scales; ++i) {
            const Map& g = s.grad_depthwise[i];
            if (i == 0)
                for_pixels([&](int y, int x) {
                    store(g.at(b, y, x), m.shares[m.plane + int64_t{y} * plan_.width + x] * load(g.at(b, y, x)));
                });
            const DepthwiseParams& p = params_.scales[i].depthwise;
            depthwise_taps(g, b, m.x, b, 3, 1 << i, grads.scales[i].depthwise.at(b));
            add_sums(g, b, grads.scales[i].depthwise.bias + b * L);
            depthwise_scatter(g, b, p.taps + b * p.block(), 3, 1 << i, grad_x, 0);
        }
    }

    const LgaPlan& plan_;
    const LgaParams& params_;
    const BackwardArgs& args_;
};

}  // namespace

void backward(const LgaPlan& plan, const BackwardArgs& args) { run<LgaBackward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
