// What both directions of conceptual attention share. Tokens, and concepts, are maps of one row; a thread takes its
// tokens in pieces, each of which stays in its cache, and what it sums over them is joined with what the others of its
// team have. Of N x K there are the attentions of one sample.
#pragma once

#include "../products.h"
#include "../run.h"
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

// What a sample keeps for backward: see saved_size
template <class Float>
struct CatSaved {
    Float *tops, *scales;              // [padded concepts], of the softmax over the tokens
    Float *token_tops, *token_scales;  // [tokens], of that over the concepts
    Float *means, *concepts, *values;  // [concept][channel]

    CatSaved(const CatPlan& plan, Float* memory)
        : tops(memory),
          scales(tops + plan.padded_concepts()),
          token_tops(scales + plan.padded_concepts()),
          token_scales(token_tops + plan.tokens),
          means(token_scales + plan.tokens),
          concepts(means + int64_t{plan.concepts} * plan.channels),
          values(concepts + int64_t{plan.concepts} * plan.channels) {}
};

struct ConceptMaps {  // [channels], concepts
    Map means, concepts, values;

    ConceptMaps(const CatPlan& plan, Bump& bump)
        : means(Map::take(bump, plan.channels, 1, plan.concepts)),
          concepts(Map::take(bump, plan.channels, 1, plan.concepts)),
          values(Map::take(bump, plan.channels, 1, plan.concepts)) {}
};

// Tokens of a piece, whole tiles of products: their channels and twice their concepts are in the cache, beside the
// weights
inline int piece_size(const CatPlan& plan) {
    const int unit = 10 * kTile, most = (1 << 16) / (plan.channels + 2 * plan.concepts);
    return std::min(plan.tokens, unit * std::max(1, std::min(4, most / unit)));
}

// f(piece) for some tokens
template <class F>
inline void for_pieces(const CatPlan& plan, Range tokens, F&& f) {
    const int size = piece_size(plan);
    for (int begin = tokens.begin; begin < tokens.end; begin += size)
        f(Range{begin, std::min(begin + size, tokens.end)});
}

// An attention of all tokens, [concepts] x tokens: one piece's map after the other
struct Attention {
    float* data;
    int concepts;

    Attention(const CatPlan& plan, Bump& bump)
        : data(bump.take(plan.tokens * padded(plan.concepts))),
          concepts(plan.concepts) {}
    Map operator[](Range piece) const { return {data + piece.begin * padded(concepts), 1, piece.end - piece.begin, 0}; }
};

// Rows of a tensor (rows, channels) and a map of so many, row by row: each is read, or written, from end to end
template <class T>
INLINE_BODY inline void fetch_rows(const T* from, int channels, const Map& map) {
    const int whole = channels / L;
    for (int n = 0; n < map.width; ++n, from += channels) {
        for (int b = 0; b < whole; ++b) store(map.at(b, 0, n), load(from + b * L, Full{}));
        if (channels % L) store(map.at(whole, 0, n), load(from + whole * L, Tail(channels % L)));
    }
}
template <class T>
INLINE_BODY inline void put_rows(const Map& map, int channels, T* to) {
    const int whole = channels / L;
    for (int n = 0; n < map.width; ++n, to += channels) {
        for (int b = 0; b < whole; ++b) store(to + b * L, load(map.at(b, 0, n)), Full{});
        if (channels % L) store(to + whole * L, load(map.at(whole, 0, n)), Tail(channels % L));
    }
}

// to (block, concept) = sum over a team of its sums [concept][padded channels], of concepts of a range, times
// factor(member, concept)
template <class Own, class F>
inline void join(const std::vector<Own>& own, Team team, int channels, Range range, F&& factor, const Map& to) {
    const int64_t row = padded(channels);
    for (int k = range.begin; k < range.end; ++k)
        for (int member = 0; member < team.size; ++member) {
            const V scale = splat(factor(member, k));
            for (int b = 0; b < blocks(channels); ++b) {
                const V v = scale * load(own[team.thread(member)].sums + k * row + b * L);
                store(to.at(b, 0, k), member ? v + load(to.at(b, 0, k)) : v);
            }
        }
}

}  // namespace fastattn::FASTATTN_ISA
