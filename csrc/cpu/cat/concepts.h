// From tokens to concepts: scores, both softmaxes, concept tokens and what these give back. Tokens, and concepts, are maps of one row.
#pragma once

#include "../convolutions.h"
#include "../products.h"
#include "plan.h"

namespace fastattn::FASTATTN_ISA {

struct CatParams {
    PointwiseParams score, value, out;

    CatParams(const CatPlan& plan, bool backward, Bump& bump)
        : score(PointwiseParams::take(bump, plan.channels, plan.concepts, backward)),
          value(PointwiseParams::take(bump, plan.channels, plan.channels, backward)),
          out(PointwiseParams::take(bump, plan.channels, plan.channels, backward)) {}

    // One thread's part
    void read(const CatPlan& plan, const void* const* tensors, int thread, int threads) const {
        with_element(plan.param_dtype, [&](auto element) {
            Reader<typename decltype(element)::type> reader(tensors, thread, threads);
            reader.matrix(reader.next(), plan.channels, score, plan.channels, plan.concepts);
            reader.pointwise(value, plan.channels, plan.channels);
            reader.pointwise(out, plan.channels, plan.channels);
        });
    }
};

struct Concepts {
    const CatPlan& plan;
    const CatParams& params;
    Map x;                        // [channels], tokens
    Map forth, back;              // [concepts], tokens: the softmax over the tokens, without its denominator, and over the concepts
    float* inverse;               // [concepts]: of those denominators
    Map means, concepts, values;  // [channels], concepts: of the tokens, concept tokens, what they give back
    Range all_channels, all_concepts;

    Concepts(const CatPlan& plan, const CatParams& params, Bump& bump)
        : plan(plan), params(params), x(Map::take(bump, plan.channels, 1, plan.tokens)), forth(Map::take(bump, plan.concepts, 1, plan.tokens)),
          back(Map::take(bump, plan.concepts, 1, plan.tokens)), inverse(bump.take(padded(plan.concepts))),
          means(Map::take(bump, plan.channels, 1, plan.concepts)), concepts(Map::take(bump, plan.channels, 1, plan.concepts)),
          values(Map::take(bump, plan.channels, 1, plan.concepts)), all_channels{0, blocks(plan.channels)}, all_concepts{0, blocks(plan.concepts)} {}

    // Memory of one thread for `build`
    static int64_t scratch_size(const CatPlan& plan) { return plan.concepts * padded(plan.channels); }

    // All of it from x, of which every block must be there
    void build(Team team, float* scratch) const {
        const Range tokens = part(plan.tokens, team), rows = part(plan.concepts, team), mine = part(all_concepts.end, team);
        product(x, {0, plan.channels}, params.score.weights, nullptr, back, all_concepts, {0, 1}, tokens, false);
        team.sync();
        for (int b = mine.begin; b < mine.end; ++b) over_tokens(b);
        team.sync();
        over_concepts(tokens);
        average(rows, scratch);
        team.sync();
        product(means, {0, plan.channels}, params.value.weights, params.value.bias, concepts, all_channels, {0, 1}, rows, false);
        product(concepts, {0, plan.channels}, params.out.weights, params.out.bias, values, all_channels, {0, 1}, rows, false);
        team.sync();
    }

    // to (block, concept) = rows [concept][padded channels] of the range, each times a factor
    static void from_rows(const float* rows, int channels, Range range, const float* factors, const Map& to) {
        for (int k = range.begin; k < range.end; ++k)
            for (int b = 0; b < blocks(channels); ++b) {
                const V v = load(rows + (k - range.begin) * padded(channels) + b * L);
                store(to.at(b, 0, k), factors ? v * factors[k] : v);
            }
    }

    // [block of channels][concept][L] -> [block of concepts][channel][L]
    static void turn(const Map& map, int channels, int concepts, Range concept_blocks, float* to) {
        for (int b = concept_blocks.begin; b < concept_blocks.end; ++b)
            for (int c = 0; c < channels; c += L) {
                V r[L] = {};
                for (int i = 0; i < std::min(L, concepts - b * L); ++i) r[i] = load(map.at(c / L, 0, b * L + i));
                transpose(r);
                for (int i = 0; i < std::min(L, channels - c); ++i) store(to + (int64_t{b} * channels + c + i) * L, r[i]);
            }
    }

private:
    // forth = exp(scores less the greatest of a concept), from the scores in `back`
    INLINE_BODY void over_tokens(int b) const {
        const float* scores = back.at(b);
        V top = load(scores);
        for (int n = 1; n < plan.tokens; ++n) top = max(load(scores + n * int64_t{L}), top);
        double total[L] = {};
        float* p = forth.at(b);
        for (int n0 = 0; n0 < plan.tokens; n0 += kExact) {
            V sum{};
            for (int n = n0; n < std::min(plan.tokens, n0 + kExact); ++n) {
                const V e = exp(load(scores + n * int64_t{L}) - top);
                store(p + n * int64_t{L}, e);
                sum += e;
            }
            for (int i = 0; i < L; ++i) total[i] += sum[i];
        }
        for (int i = 0; i < L; ++i) inverse[b * L + i] = static_cast<float>(1 / total[i]);
    }

    // back = softmax over the concepts of the scores there
    INLINE_BODY void over_concepts(Range tokens) const {
        const int last = plan.concepts - (all_concepts.end - 1) * L;  // concepts in the last block
        const Tail tail(last);
        const V outside = splat(-__builtin_inff()), none = keep(splat(1.0f), tail);
        for (int n = tokens.begin; n < tokens.end; ++n) {
            V tops = outside, sums{};
            const auto each = [&](auto&& f) {
                for (int b = 0; b < all_concepts.end; ++b) {
                    float* p = back.at(b, 0, n);
                    const V v = load(p);
                    f(p, b + 1 < all_concepts.end || last == L ? v : (none > 0 ? v : outside));
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
            for (int b = 0; b < all_concepts.end; ++b) store(back.at(b, 0, n), load(back.at(b, 0, n)) * scale);
        }
    }

    void average(Range rows, float* scratch) const {
        const int64_t row = padded(plan.channels);
        std::fill(scratch, scratch + (rows.end - rows.begin) * row, 0.0f);
        gram(forth, rows, x, all_channels, scratch, row);
        from_rows(scratch, plan.channels, rows, inverse, means);
    }
};

}  // namespace fastattn
