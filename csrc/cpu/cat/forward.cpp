// Conceptual attention forward at one instruction-set level. The algebra is derived in
// fastattn/interaction/reference.py.
#include "concepts.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class T>
class CatForward {
public:
    using Params = CatParams;
    using Gradients = NoGradients;

    struct State {
        Attention back;  // the softmax over the concepts
        ConceptMaps maps;
        float* saved;  // where nothing is kept for backward

        State(const CatPlan& plan, const CatParams&, Bump& bump)
            : back(plan, bump),
              maps(plan, bump),
              saved(bump.take(plan.saved_size())) {}
    };

    struct Own {
        float* sums;     // [concept][padded channels] of this thread's tokens, weighted by exp(score - top)
        float* tops;     // [padded concepts]: greatest score so far
        double* totals;  // [padded concepts] of the weights
        Map x;           // [channels], tokens of a piece
        Map forth;       // [concepts], tokens of a piece: the weights

        Own(const CatPlan& plan, Bump& bump)
            : sums(bump.take(plan.concepts * padded(plan.channels))),
              tops(bump.take(padded(plan.concepts))),
              totals(reinterpret_cast<double*>(bump.take(2 * padded(plan.concepts)))),
              x(Map::take(bump, plan.channels, 1, piece_size(plan))),
              forth(Map::take(bump, plan.concepts, 1, piece_size(plan))) {}
    };

    CatForward(const CatPlan& plan, const CatParams& params, const ForwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& s, const std::vector<Own>& own, const NoGradients&) const {
        const int channels = plan_.channels, concepts = plan_.concepts;
        const int64_t offset = int64_t{index} * plan_.tokens * channels;
        const Range all{0, blocks(channels)}, rows = part(concepts, team), tokens = part(plan_.tokens, team);
        const CatSaved<float> saved(plan_, args_.saved ? args_.saved + index * plan_.saved_size() : s.saved);
        const Own& mine = own[team.thread(team.rank)];

        std::fill(mine.sums, mine.sums + concepts * padded(channels), 0.0f);
        std::fill(mine.tops, mine.tops + padded(concepts), -__builtin_inff());
        std::fill(mine.totals, mine.totals + padded(concepts), 0.0);
        for_pieces(plan_, tokens, [&](Range piece) {
            const Map x = mine.x.first(piece.end - piece.begin), back = s.back[piece];
            fetch_rows(static_cast<const T*>(args_.x) + offset + int64_t{piece.begin} * channels, channels, x);
            linear(x, channels, params_.score.weights, nullptr, back, {0, blocks(concepts)});
            gather(mine, back, x);
            over_concepts(back, saved.token_tops + piece.begin, saved.token_scales + piece.begin);
        });
        team.sync();

        form(s.maps, saved, own, team, rows);
        team.sync();

        for_pieces(plan_, tokens, [&](Range piece) {
            const Map out = mine.x.first(piece.end - piece.begin);
            const int64_t first = offset + int64_t{piece.begin} * channels;
            fetch_rows(static_cast<const T*>(args_.x) + first, channels, out);
            linear(s.back[piece], concepts, s.maps.values.data, params_.out.bias, out, all, true);
            put_rows(out, channels, static_cast<T*>(args_.out) + first);
        });
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    // Adds a piece to this thread's sums, which a greater top shrinks
    INLINE_BODY void gather(const Own& own, const Map& scores, const Map& x) const {
        const Map forth = own.forth.first(x.width);
        const int64_t row = padded(plan_.channels);
        for (int b = 0; b < blocks(plan_.concepts); ++b) {
            const float* from = scores.at(b);
            const V before = load(own.tops + b * L);
            V top = before;
            for (int n = 0; n < x.width; ++n) top = max(load(from + n * int64_t{L}), top);
            store(own.tops + b * L, top);
            const V shrink = exp(before - top);
            V sum{};
            for (int n = 0; n < x.width; ++n) {
                const V e = exp(load(from + n * int64_t{L}) - top);
                store(forth.at(b, 0, n), e);
                sum += e;
            }
            for (int i = 0; i < L; ++i) own.totals[b * L + i] = own.totals[b * L + i] * shrink[i] + sum[i];
            for (int i = 0; i < std::min(L, plan_.concepts - b * L); ++i) {
                float* p = own.sums + (b * L + i) * row;
                for (int c = 0; c < row && shrink[i] != 1; c += L) store(p + c, load(p + c) * shrink[i]);
            }
        }
        gram(forth, {0, plan_.concepts}, x, {0, blocks(plan_.channels)}, own.sums, row);
    }

    // back = softmax over the concepts of the scores there
    INLINE_BODY void over_concepts(const Map& back, float* token_tops, float* token_scales) const {
        const int end = blocks(plan_.concepts), last = plan_.concepts - (end - 1) * L;  // concepts in the last block
        const V outside = splat(-__builtin_inff()), none = keep(splat(1.0f), Tail(last));
        for (int n = 0; n < back.width; ++n) {
            V tops = outside, sums{};
            const auto each = [&](auto&& f) {
                for (int b = 0; b < end; ++b) {
                    float* p = back.at(b, 0, n);
                    const V v = load(p);
                    f(p, b + 1 < end || last == L ? v : (none > 0 ? v : outside));
                }
            };
            each([&](float*, V v) { tops = max(v, tops); });
            const V top = splat(largest(tops));
            each([&](float* p, V v) {
                const V e = v == outside ? V{} : exp(v - top);
                store(p, e);
                sums += e;
            });
            const V scale = splat(1 / sum(sums));
            for (int b = 0; b < end; ++b) store(back.at(b, 0, n), load(back.at(b, 0, n)) * scale);
            token_tops[n] = top[0];
            token_scales[n] = scale[0];
        }
    }

    // Of some concepts: means out of the team's sums, concept tokens, and what these give back, without the bias
    void form(const ConceptMaps& maps, const CatSaved<float>& saved, const std::vector<Own>& own, Team team,
              Range rows) const {
        const auto shrunk = [&](int member, int k) {
            return exp(splat(own[team.thread(member)].tops[k] - saved.tops[k]))[0];
        };
        for (int k = rows.begin; k < rows.end; ++k) {
            saved.tops[k] = own[team.thread(0)].tops[k];
            for (int member = 1; member < team.size; ++member)
                saved.tops[k] = std::max(saved.tops[k], own[team.thread(member)].tops[k]);
            double total = 0;
            for (int member = 0; member < team.size; ++member)
                total += own[team.thread(member)].totals[k] * shrunk(member, k);
            saved.scales[k] = static_cast<float>(1 / total);
        }
        const int channels = plan_.channels;
        const Range all{0, blocks(channels)};
        const Map means = maps.means.columns(rows), concepts = maps.concepts.columns(rows),
                  values = maps.values.columns(rows);
        join(
            own, team, channels, rows, [&](int member, int k) { return shrunk(member, k) * saved.scales[k]; },
            maps.means);
        linear(means, channels, params_.value.weights, params_.value.bias, concepts, all);
        linear(concepts, channels, params_.out.weights, nullptr, values, all);
        if (!args_.saved) return;
        const int64_t first = int64_t{rows.begin} * channels;
        put_rows(means, channels, saved.means + first);
        put_rows(concepts, channels, saved.concepts + first);
        put_rows(values, channels, saved.values + first);
        if (rows.end == plan_.concepts)  // what fills up their last block
            for (float* p : {saved.tops, saved.scales})
                std::fill(p + plan_.concepts, p + plan_.padded_concepts(), 0.0f);
    }

    const CatPlan& plan_;
    const CatParams& params_;
    const ForwardArgs& args_;
};

}  // namespace

void forward(const CatPlan& plan, const ForwardArgs& args) { run<CatForward>(plan, args); }

}  // namespace fastattn::FASTATTN_ISA
