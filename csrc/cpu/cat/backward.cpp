// Conceptual attention backward at one instruction-set level: all is formed anew from x. The algebra is derived in
// fastattn/reference/interaction.py.
#include "../workspace.h"
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

    void write(const CatPlan& plan, Writer writer) const {
        writer.next([&](float* to) { Writer::matrix(score, plan.channels, plan.concepts, to, plan.channels); });
        writer.pointwise(value, plan.channels, plan.channels);
        writer.pointwise(out, plan.channels, plan.channels);
    }
};

// Buffers of one sample, shared by its team
struct CatState {
    Concepts s;
    Map grad;                                     // [channels], tokens: of the output, then of x
    Map grad_scores, pulls;                       // [concepts], tokens: through `back`; tokens times grad_means
    Map grad_values, grad_concepts, grad_means;   // [channels], concepts
    float *turned_values, *turned_means;          // [block of concepts][channel][L]
    float* levels;                                // [concepts]: means times their gradient

    CatState(const CatPlan& plan, const CatParams& params, Bump& bump) : s(plan, params, bump), grad(Map::take(bump, plan.channels, 1, plan.tokens)) {
        grad_scores = Map::take(bump, plan.concepts, 1, plan.tokens);
        pulls = Map::take(bump, plan.concepts, 1, plan.tokens);
        for (Map* map : {&grad_values, &grad_concepts, &grad_means}) *map = Map::take(bump, plan.channels, 1, plan.concepts);
        turned_values = bump.take(padded(plan.concepts) * plan.channels);
        turned_means = bump.take(padded(plan.concepts) * plan.channels);
        levels = bump.take(padded(plan.concepts));
    }
};

template <class T>
class CatBackward {
public:
    CatBackward(const CatPlan& plan, const CatParams& params, const CatBackwardArgs& args) : plan_(plan), params_(params), args_(args) {}

    void sample(int index, Team team, float* shared, float* own, const CatGradients& out) const {
        Bump bump(shared);
        const CatState state(plan_, params_, bump);
        const Concepts& s = state.s;
        const int channels = plan_.channels, concepts = plan_.concepts;
        const int64_t offset = int64_t{index} * plan_.tokens * channels, row = padded(channels);
        const Range mine = part(s.all_channels.end, team), tokens = part(plan_.tokens, team), rows = part(concepts, team);
        const Range outputs = part(channels, team), concept_blocks = part(s.all_concepts.end, team);
        for (int b = mine.begin; b < mine.end; ++b) {
            Tensor<const T>{static_cast<const T*>(args_.x) + offset, channels, true}.fetch(s.x, b);
            Tensor<const T>{static_cast<const T*>(args_.grad_out) + offset, channels, true}.fetch(state.grad, b);
        }
        team.sync();
        s.build(team, own);
        for (int b = concept_blocks.begin; b < concept_blocks.end; ++b) normalize(s, b);

        // from the output to the means of the tokens, by concepts
        std::fill(own, own + (rows.end - rows.begin) * row, 0.0f);
        gram(s.back, rows, state.grad, s.all_channels, own, row);
        Concepts::from_rows(own, channels, rows, nullptr, state.grad_values);
        Concepts::turn(s.values, channels, concepts, concept_blocks, state.turned_values);
        product(state.grad_values, {0, channels}, params_.out.transposed, nullptr, state.grad_concepts, s.all_channels, {0, 1}, rows, false);
        product(state.grad_concepts, {0, channels}, params_.value.transposed, nullptr, state.grad_means, s.all_channels, {0, 1}, rows, false);
        for (int k = rows.begin; k < rows.end; ++k) {
            V total{};
            for (int b = 0; b < s.all_channels.end; ++b) total += load(s.means.at(b, 0, k)) * load(state.grad_means.at(b, 0, k));
            state.levels[k] = sum(total);
        }
        if (rows.end == concepts) std::fill(state.levels + concepts, state.levels + padded(concepts), 0.0f);
        team.sync();
        gram(state.grad_values, outputs, s.concepts, s.all_channels, out.out.weights + outputs.begin * row, row);
        gram(state.grad_concepts, outputs, s.means, s.all_channels, out.value.weights + outputs.begin * row, row);
        for (int b = mine.begin; b < mine.end; ++b) {
            add_sums(state.grad_values, b, out.out.bias + b * L);
            add_sums(state.grad_concepts, b, out.value.bias + b * L);
        }
        Concepts::turn(state.grad_means, channels, concepts, concept_blocks, state.turned_means);
        team.sync();

        // to the scores, and to x
        product(state.grad, {0, channels}, state.turned_values, nullptr, state.grad_scores, s.all_concepts, {0, 1}, tokens, false);
        product(s.x, {0, channels}, state.turned_means, nullptr, state.pulls, s.all_concepts, {0, 1}, tokens, false);
        slopes(state, tokens);
        product(state.grad_scores, {0, concepts}, params_.score.transposed, nullptr, state.grad, s.all_channels, {0, 1}, tokens, true);
        product(s.forth, {0, concepts}, state.grad_means.data, nullptr, state.grad, s.all_channels, {0, 1}, tokens, true);
        team.sync();
        gram(state.grad_scores, rows, s.x, s.all_channels, out.score.weights + rows.begin * row, row);
        if (args_.grad_x)
            for (int b = mine.begin; b < mine.end; ++b) Tensor<T>{static_cast<T*>(args_.grad_x) + offset, channels, true}.put(state.grad, b, b);
        team.sync();  // before the next sample overwrites what another thread still reads
    }

private:
    void normalize(const Concepts& s, int b) const {
        const V scale = load(s.inverse + b * L);
        for (float* p = s.forth.at(b); p < s.forth.at(b) + s.forth.block(); p += L) store(p, load(p) * scale);
    }

    // grad_scores = through both softmaxes; `forth` is normalized
    INLINE_BODY void slopes(const CatState& state, Range tokens) const {
        const Concepts& s = state.s;
        for (int n = tokens.begin; n < tokens.end; ++n) {
            V total{};
            for (int b = 0; b < s.all_concepts.end; ++b) total += load(s.back.at(b, 0, n)) * load(state.grad_scores.at(b, 0, n));
            const V mean = splat(sum(total));
            for (int b = 0; b < s.all_concepts.end; ++b) {
                float* p = state.grad_scores.at(b, 0, n);
                const V forth = load(s.forth.at(b, 0, n)) * (load(state.pulls.at(b, 0, n)) - load(state.levels + b * L));
                store(p, load(s.back.at(b, 0, n)) * (load(p) - mean) + forth);
            }
        }
    }

    const CatPlan& plan_;
    const CatParams& params_;
    const CatBackwardArgs& args_;
};

template <class T>
void run(const CatPlan& plan, const CatBackwardArgs& args) {
    using Gradients = ThreadSums<CatGradients, CatPlan>;
    const int limit = useful_threads(int64_t{plan.batch} * plan.tokens * plan.channels, args.threads);
    Bump sizes = Bump::measure();
    const CatParams model(plan, true, sizes);
    const int64_t param_size = sizes.taken();
    CatState(plan, model, sizes);
    const int64_t shared = sizes.taken() - param_size, own = round_up(Concepts::scratch_size(plan), 16), grad_size = Gradients::size(plan);
    float* memory = workspace(param_size + limit * (shared + own + grad_size));
    Bump bump(memory);
    const CatParams params(plan, true, bump);
    float *shared_buffers = memory + param_size, *own_buffers = shared_buffers + limit * shared;
    const Gradients grads(plan, own_buffers + limit * own, limit);
    const CatBackward<T> work(plan, params, args);
#pragma omp parallel num_threads(limit)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        params.read(plan, args.params, thread, threads);
        grads.clear(thread);
#pragma omp barrier
        for_samples(plan.batch, thread, threads, [&](int index, Team team) {
            work.sample(index, team, shared_buffers + team.first * shared, own_buffers + thread * own, grads.of(thread));
        });
        if (args.grad_params) {
#pragma omp barrier
            grads.add(thread, threads);
#pragma omp barrier
            grads.of(0).write(plan, Writer(args.grad_params, thread, threads));
        }
    }
    trim_workspace();
}

}  // namespace

void cat_backward(const CatPlan& plan, const CatBackwardArgs& args) {
    with_element(plan.dtype, [&](auto element) { run<typename decltype(element)::type>(plan, args); });
}

}  // namespace fastattn
