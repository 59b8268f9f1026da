// SCSA, SMSA and PCSA backward at one instruction-set level. The algebra is derived in fastattn/scsa/reference.py.
#include "../run.h"
#include "sample.h"

namespace fastattn::FASTATTN_ISA {
namespace {

template <class Passes, class T>
class Backward {
public:
    using Params = ScsaParams;
    using Gradients = ScsaParams;

    // HeadPartials are a team's: whatever its size, the sums are the same
    struct State {
        HeadPartials partials;
        float* memory;

        State(const ScsaPlan& plan, const ScsaParams&, Bump& bump)
            : partials{plan.channel ? bump.take(HeadPartials::size(plan)) : nullptr,
                       plan.channel ? Chunks(plan).per_head : 0},
              memory(bump.take(size(plan))) {}

        static int64_t size(const ScsaPlan& plan) {
            const int64_t axes = int64_t{plan.height} + plan.width, ph = plan.pooled_h, pw = plan.pooled_w;
            const int64_t rows = 2 * axes + ph * plan.window_h * pw + ph * plan.width + plan.pooled + 16;
            return Sample::size(plan) + rows * plan.channels + 32 * 16;
        }
    };

    struct Own {
        float* memory;

        Own(const ScsaPlan& plan, Bump& bump)
            : memory(bump.take(Passes::scratch_size(plan) + Projections::size(plan) + attention_scratch(plan) + 64)) {}
    };

    Backward(const ScsaPlan& plan, const ScsaParams& params, const BackwardArgs& args)
        : plan_(plan),
          params_(params),
          args_(args) {}

    void sample(int index, Team team, const State& shared, const std::vector<Own>& own,
                const ScsaParams& sums_of_thread) const {
        const ScsaParams* grads = args_.grad_params ? &sums_of_thread : nullptr;
        const int64_t C = plan_.channels, offset = index * C * plan_.pixels;
        const T *input = static_cast<const T*>(args_.x) + offset,
                *grad_out = static_cast<const T*>(args_.grad_out) + offset;
        const Range range = slice(plan_.channels, team.rank, team.size);
        Bump bump(shared.memory), mine(own[team.thread(team.rank)].memory);
        float* saved = const_cast<float*>(args_.saved) + index * plan_.saved_size();  // read only
        Sample s(plan_, params_, bump, saved, true);
        const Passes passes(plan_, mine.take(Passes::scratch_size(plan_)));
        const typename Passes::Map *x = passes.fetch(input, range, 0), *d = passes.fetch(grad_out, range, 1);
        const bool average = plan_.channel && plan_.spatial && !plan_.max_pool;

        Gathered sums;
        sums.r_h = bump.take(plan_.height * C);
        sums.r_w = bump.take(plan_.width * C);
        sums.s_h = average ? bump.take(int64_t{plan_.pooled_h} * plan_.window_h * plan_.pooled_w * C) : nullptr;
        sums.s_w = average ? bump.take(int64_t{plan_.pooled_h} * plan_.width * C) : nullptr;
        float* dy = plan_.channel ? bump.take(plan_.pooled * C) : nullptr;

        if (plan_.spatial) {
            convolve(plan_, params_, range, s.h);
            convolve(plan_, params_, range, s.w);
        }
        if (plan_.channel) pooled_statistics(plan_, range, s.y, s.statistics);
        team.sync();
        if (plan_.spatial) {
            normalize_and_gate(plan_, range, s.h);
            normalize_and_gate(plan_, range, s.w);
        }
        passes.gather(d, x, range, s.h.a, s.w.a, sums);
        if (plan_.channel) attention(range, team, s, sums, bump, mine, shared.partials, dy, grads);
        if (plan_.spatial) gates(range, team, s, input, sums, dy, bump, grads);
        if (!args_.grad_x) return;

        T* dx = static_cast<T*>(args_.grad_x) + offset;
        const InputGradient in{s.g, plan_.max_pool ? nullptr : dy, plan_.spatial ? sums.r_h : nullptr,
                               plan_.spatial ? sums.r_w : nullptr};
        const Share share = written_share<Passes>(plan_, range, team);
        passes.input_gradient(d, share.channels, share.rows, s.h.a, s.w.a, in, dx);
        if (s.argmax && Passes::kWritesByRows) team.sync();
        if (s.argmax) maxima_gradient(range, grad_out, s, in, dy, dx);
    }

private:
    void attention(Range range, Team team, const Sample& s, const Gathered& sums, Bump& bump, Bump& mine,
                   const HeadPartials& partials, float* dy, const ScsaParams* grads) const {
        const int64_t C = plan_.channels;
        float *d_o = bump.take(C), *g_dg = bump.take(C), *sum_dy = bump.take(C), *sum_dy_y = bump.take(C);
        channel_gate(plan_, range, s.rows.o, s.g);
        for_lanes(range.begin, range.end, [&](int c, auto m) {
            V dg{};  // gradient of the channel gate
            for (int h = 0; h < plan_.height; ++h) {
                const V r = load(sums.r_h + h * C + c, m);
                dg += plan_.spatial ? r * load(s.h.a + h * C + c, m) : r;
            }
            const V g = load(s.g + c, m);
            store(g_dg + c, g * dg, m);
            if (!plan_.softmax_gate) store(d_o + c, dg * (g * (1.0f - g)), m);
        });
        if (plan_.softmax_gate) {
            team.sync();
            const float dot = sum_over(g_dg, 0, plan_.channels);
            for_lanes(range.begin, range.end,
                      [&](int c, auto m) { store(d_o + c, load(g_dg + c, m) - load(s.g + c, m) * dot, m); });
        }
        Projections p(plan_, mine);
        project(plan_, params_, s.y, s.statistics, p);
        team.sync();
        attend_backward(plan_, part(Chunks(plan_).count, team), p, s.rows, d_o, dy, partials,
                        mine.take(attention_scratch(plan_)));
        team.sync();
        project_backward(plan_, range, params_, s.y, s.statistics, p, partials, dy, sum_dy, sum_dy_y, grads);
        team.sync();
        const float share = plan_.max_pool ? 1.0f : 1.0f / (plan_.window_h * plan_.window_w);
        pooled_gradient(plan_, range, s.y, p, sum_dy, sum_dy_y, share, dy);
    }

    void gates(Range range, Team team, const Sample& s, const T* x, const Gathered& sums, const float* dy, Bump& bump,
               const ScsaParams* grads) const {
        const int64_t C = plan_.channels;
        if (plan_.channel) gate_gradients(range, s, x, sums, dy);
        AxisGradient h{sums.r_h, bump.take(C), bump.take(C), grads ? grads->norm_h_weight : nullptr,
                       grads ? grads->norm_h_bias : nullptr};
        AxisGradient w{sums.r_w, bump.take(C), bump.take(C), grads ? grads->norm_w_weight : nullptr,
                       grads ? grads->norm_w_bias : nullptr};
        float* du = bump.take(std::max(plan_.height, plan_.width) * C);
        gate_backward(plan_, range, s.h, h);
        gate_backward(plan_, range, s.w, w);
        team.sync();
        convolve_backward(plan_, params_, range, s.h, h, 1.0f / plan_.width, du, grads);
        convolve_backward(plan_, params_, range, s.w, w, 1.0f / plan_.height, du, grads);
    }

    // r_h, r_w -> gradients of a_h, a_w: what comes through g, and what comes through the pooled map
    void gate_gradients(Range range, const Sample& s, const T* x, const Gathered& sums, const float* dy) const {
        const int64_t C = plan_.channels;
        const int pw = plan_.pooled_w, used_h = plan_.pooled_h * plan_.window_h, used_w = pw * plan_.window_w;
        for_lanes(range.begin, range.end, [&](int c, auto m) {
            const V g = load(s.g + c, m);
            for (int h = 0; h < plan_.height; ++h) {
                V r = g * load(sums.r_h + h * C + c, m);
                if (sums.s_h && h < used_h)
                    for (int k = 0; k < pw; ++k)
                        r += load(dy + (int64_t{h / plan_.window_h} * pw + k) * C + c, m) *
                             load(sums.s_h + (int64_t{h} * pw + k) * C + c, m);
                store(sums.r_h + h * C + c, r, m);
            }
            for (int w = 0; w < plan_.width; ++w) {
                V r = g * load(sums.r_w + w * C + c, m);
                if (sums.s_w && w < used_w)
                    for (int b = 0; b < plan_.pooled_h; ++b)
                        r += load(dy + (int64_t{b} * pw + w / plan_.window_w) * C + c, m) *
                             load(sums.s_w + (int64_t{b} * plan_.width + w) * C + c, m);
                store(sums.r_w + w * C + c, r, m);
            }
        });
        if (!s.argmax) return;
        for_maxima(range, s, [&](int c, int h, int w, int64_t n, int64_t at) {
            const float e = dy[n] * load_one(x + at);
            sums.r_h[h * C + c] += e * s.w.a[w * C + c];
            sums.r_w[w * C + c] += e * s.h.a[h * C + c];
        });
    }

    // dx at the windows' maxima, from d again so that it is rounded once
    void maxima_gradient(Range range, const T* d, const Sample& s, const InputGradient& in, const float* dy,
                         T* dx) const {
        const int64_t C = plan_.channels;
        for_maxima(range, s, [&](int c, int h, int w, int64_t n, int64_t at) {
            float e = load_one(d + at) * s.g[c] + dy[n];
            if (plan_.spatial) e = e * s.h.a[h * C + c] * s.w.a[w * C + c] + in.m_h[h * C + c] + in.m_w[w * C + c];
            store_one(dx + at, e);
        });
    }

    // f(channel, row, column, index in [N][C], offset in x) for every maximum
    template <class F>
    void for_maxima(Range range, const Sample& s, F&& f) const {
        const int64_t C = plan_.channels;
        for (int64_t n = 0; n < plan_.pooled; ++n)
            for (int c = range.begin; c < range.end; ++c) {
                const int64_t place = s.argmax[n * C + c];
                const int h = static_cast<int>(place / plan_.width), w = static_cast<int>(place % plan_.width);
                f(c, h, w, n * C + c, plan_.channels_last ? place * C + c : c * plan_.pixels + place);
            }
    }

    const ScsaPlan& plan_;
    const ScsaParams& params_;
    const BackwardArgs& args_;
};

}  // namespace

void backward(const ScsaPlan& plan, const BackwardArgs& args) {
    with_passes(plan, [&](auto passes, auto element) {
        run_typed<Backward<typename decltype(passes)::type, typename decltype(element)::type>>(plan, args);
    });
}

}  // namespace fastattn::FASTATTN_ISA
