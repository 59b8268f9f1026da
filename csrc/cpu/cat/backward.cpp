// Conceptual attention backward at one instruction-set level: both softmaxes are formed anew from x. The algebra is
// derived in fastattn/interaction/reference.py.
#include <array>

#include "concepts.h"

namespace fastattn::FASTATTN_ISA {
namespace {

struct CatGradients {
    PointwiseGradients score, value, out;

    void arrange(const CatPlan& plan, Sums& sums) {
        score = sums.pointwise(plan.channels, plan.concepts);
        value = sums.pointwise(plan.channels, plan.channels);
        out = sums.pointwise(plan.channels, plan.channels);
    }

    // One thread's part
    void write(const CatPlan& plan, void* const* tensors, int thread, int threads) const {
        Writer writer(tensors, thread, threads);
        writer.next([&](float* to) { Writer::matrix(score, plan.channels, plan.concepts, to, plan.channels); });
        writer.pointwise(value, plan.channels, plan.channels);
        writer.pointwise(out, plan.channels, plan.channels);
    }
};

// f(channel, its values in the concepts of block b) for a map [block of channels][concept][L]
template <class F>
inline void for_turned(const Map& map, int channels, int concepts, int b, F&& f) {
    for (int c = 0; c < channels; c += L) {
        V r[L] = {};
        for (int i = 0; i < std::min(L, concepts - b * L); ++i) r[i] = load(map.at(c / L, 0, b * L + i));
        transpose(r);
        for (int i = 0; i < std::min(L, channels - c); ++i) f(c + i, r[i]);
    }
}

template <class T>
class CatBackward {
public:
    using Params = CatParams;
    using Gradients = CatGradients;

    struct State {
        Attention forth, back;  // the softmax over the tokens, and over the concepts
        ConceptMaps maps, grads;
        float *turned_values, *turned_means;  // values and the gradient of the means: [block of concepts][channel][L]
        float* e;                             // [padded concepts]: means times their gradient, summed as the pulls are

        State(const CatPlan& plan, const CatParams&, Bump& bump)
            : forth(plan, bump),
              back(plan, bump),
              maps(plan, bump),
              grads(plan, bump),
              turned_values(bump.take(padded(plan.concepts) * plan.channels)),
              turned_means(bump.take(padded(plan.concepts) * plan.channels)),
              e(bump.take(padded(plan.concepts))) {}
    };

    struct Own {
        float* sums;  // [concept][padded channels]: the values' gradient, of this thread's tokens
        Map x, grad;  // [channels], tokens of a piece: the latter of the output, then of x
        // [concepts], tokens of a piece: through `back`; tokens times the gradient of the means
        Map grad_scores, pulls;

        Own(const CatPlan& plan, Bump& bump)
            : sums(bump.take(plan.concepts * padded(plan.channels))),
              x(Map::take(bump, plan.channels, 1, piece_size(plan))),
              grad(Map::take(bump, plan.channels, 1, piece_size(plan))),
              grad_scores(Map::take(bump, plan.concepts, 1, piece_size(plan))),
              pulls(Map::take(bump, plan.concepts, 1, piece_size(plan))) {}
    };

    CatBackward(const CatPlan& plan, const CatParams& params, const BackwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& own, const CatGradients& out) const {
        const Range tokens = part(plan_.tokens, team);
        const CatSaved<const float> saved(plan_, args_.saved + index * plan_.saved_size());
        const Own& mine = own[team.thread(team.rank)];
        fetch(s.maps, saved, part(plan_.concepts, team));
        std::fill(mine.sums, mine.sums + plan_.concepts * padded(plan_.channels), 0.0f);
        for_pieces(plan_, tokens, [&](Range piece) { attend(index, piece, s, saved, mine, out); });
        team.sync();
        join(own, team, plan_.channels, part(plan_.concepts, team), [](int, int) { return 1.0f; }, s.grads.values);
        to_means(s, part(plan_.concepts, team));
        team.sync();
        by_concepts(s, team, out);
        team.sync();
        for_pieces(plan_, tokens, [&](Range piece) { to_tokens(index, piece, s, mine, out); });
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    // Where a piece is in a tensor
    int64_t offset(int index, Range piece) const {
        return (int64_t{index} * plan_.tokens + piece.begin) * plan_.channels;
    }

    // A piece of x and of the output's gradient
    std::array<Map, 2> fetch(int index, Range piece, const Own& own) const {
        const Map x = own.x.first(piece.end - piece.begin), grad = own.grad.first(piece.end - piece.begin);
        fetch_rows(static_cast<const T*>(args_.x) + offset(index, piece), plan_.channels, x);
        fetch_rows(static_cast<const T*>(args_.grad_out) + offset(index, piece), plan_.channels, grad);
        return {x, grad};
    }

    void fetch(const ConceptMaps& maps, const CatSaved<const float>& saved, Range rows) const {
        const int64_t first = int64_t{rows.begin} * plan_.channels;
        fetch_rows(saved.means + first, plan_.channels, maps.means.columns(rows));
        fetch_rows(saved.concepts + first, plan_.channels, maps.concepts.columns(rows));
        fetch_rows(saved.values + first, plan_.channels, maps.values.columns(rows));
    }

    // Both softmaxes of a piece, and the gradients of the values and of the bias behind them
    INLINE_BODY void attend(int index, Range piece, const State& s, const CatSaved<const float>& saved, const Own& own,
                            const CatGradients& out) const {
        const auto [x, grad] = fetch(index, piece, own);
        const Map forth = s.forth[piece], back = s.back[piece];
        const int end = blocks(plan_.concepts);
        linear(x, plan_.channels, params_.score.weights, nullptr, back, {0, end});
        for (int b = 0; b < end; ++b) {
            const V top = load(saved.tops + b * L), scale = load(saved.scales + b * L);
            for (int n = 0; n < x.width; ++n) {
                const V score = load(back.at(b, 0, n));
                store(forth.at(b, 0, n), exp_share(score - top) * scale);
                store(back.at(b, 0, n),
                      exp_share(score - saved.token_tops[piece.begin + n]) * saved.token_scales[piece.begin + n]);
            }
        }
        gram(back, {0, plan_.concepts}, grad, {0, blocks(plan_.channels)}, own.sums, padded(plan_.channels));
        for (int b = 0; b < blocks(plan_.channels); ++b) add_sums(grad, b, out.out.bias + b * L);
    }

    // From the values to the tokens' means
    void to_means(const State& s, Range rows) const {
        const Range all{0, blocks(plan_.channels)};
        linear(s.grads.values.columns(rows), plan_.channels, params_.out.transposed, nullptr,
               s.grads.concepts.columns(rows), all);
        linear(s.grads.concepts.columns(rows), plan_.channels, params_.value.transposed, nullptr,
               s.grads.means.columns(rows), all);
    }

    // The gradients of the C x C matrices and their biases, and what the tokens need
    void by_concepts(const State& s, Team team, const CatGradients& out) const {
        const int channels = plan_.channels;
        const Range all{0, blocks(channels)}, outputs = part(channels, team), mine = part(all.end, team),
                                              turned = part(blocks(plan_.concepts), team);
        const int64_t row = padded(channels), first = outputs.begin * row;
        if (args_.grad_params) {
            gram(s.grads.values, outputs, s.maps.concepts, all, out.out.weights + first, row);
            gram(s.grads.concepts, outputs, s.maps.means, all, out.value.weights + first, row);
            for (int b = mine.begin; b < mine.end; ++b) add_sums(s.grads.concepts, b, out.value.bias + b * L);
        }
        for (int b = turned.begin; b < turned.end; ++b) {
            float *values = s.turned_values + int64_t{b} * channels * L,
                  *means = s.turned_means + int64_t{b} * channels * L;
            for_turned(s.maps.values, channels, plan_.concepts, b, [&](int c, V v) { store(values + c * L, v); });
            for_turned(s.grads.means, channels, plan_.concepts, b, [&](int c, V v) { store(means + c * L, v); });
            // one sum after the other, as a product sums: the pull of a token that is a mean by itself cancels to zero
            V level{};
            for_turned(s.maps.means, channels, plan_.concepts, b,
                       [&](int c, V v) { level += load(means + c * L) * v; });
            store(s.e + b * L, level);
        }
    }

    // The gradients of a piece's scores, of the weight that makes them, and of the tokens
    void to_tokens(int index, Range piece, const State& s, const Own& own, const CatGradients& out) const {
        const int channels = plan_.channels, concepts = plan_.concepts;
        const Range all{0, blocks(channels)}, scored{0, blocks(concepts)};
        const auto [x, grad] = fetch(index, piece, own);
        const Map forth = s.forth[piece], grad_scores = own.grad_scores.first(x.width),
                  pulls = own.pulls.first(x.width);
        linear(grad, channels, s.turned_values, nullptr, grad_scores, scored);
        linear(x, channels, s.turned_means, nullptr, pulls, scored);
        through_softmaxes(s.back[piece], forth, pulls, s.e, grad_scores);
        if (args_.grad_params) gram(grad_scores, {0, concepts}, x, all, out.score.weights, padded(channels));
        if (!args_.grad_x) return;
        linear(grad_scores, concepts, params_.score.transposed, nullptr, grad, all, true);
        linear(forth, concepts, s.grads.means.data, nullptr, grad, all, true);
        put_rows(grad, channels, static_cast<T*>(args_.grad_x) + offset(index, piece));
    }

    INLINE_BODY void through_softmaxes(const Map& back, const Map& forth, const Map& pulls, const float* e,
                                       const Map& grad_scores) const {
        const int end = blocks(plan_.concepts);
        for (int n = 0; n < back.width; ++n) {
            V total{};
            for (int b = 0; b < end; ++b) total += load(back.at(b, 0, n)) * load(grad_scores.at(b, 0, n));
            const V mean = splat(sum(total));
            for (int b = 0; b < end; ++b) {
                float* p = grad_scores.at(b, 0, n);
                const V own = load(forth.at(b, 0, n)) * (load(pulls.at(b, 0, n)) - load(e + b * L));
                store(p, load(back.at(b, 0, n)) * (load(p) - mean) + own);
            }
        }
    }

    const CatPlan& plan_;
    const CatParams& params_;
    const BackwardArgs& args_;
};

}  // namespace

void backward(const CatPlan& plan, const BackwardArgs& args) { run<CatBackward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
