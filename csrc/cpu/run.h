// One call of an operation in one direction: its memory and its threads.
#pragma once

#include "args.h"
#include "convolutions.h"
#include "workspace.h"

namespace fastattn::FASTATTN_ISA {

// What a forward pass has in place of the parameters' gradients
struct NoGradients {
    template <class Plan>
    void arrange(const Plan&, Sums&) {}
};

// Of a `Work<element type>`, made of (plan, params, args):
//   Params     (plan, backward, bump); read(plan, tensors, thread, threads) is one thread's part
//   State      (plan, params, bump), buffers of one sample, shared by its team
//   Own        (plan, bump), buffers of one thread
//   Gradients  as ThreadSums has them; write(plan, tensors, thread, threads) is one thread's part. Or NoGradients
//   sample(index, team, state, own of all threads, gradients of this one)
template <class Work, class Plan, class Args>
void run_typed(const Plan& plan, const Args& args) {
    using Params = typename Work::Params;
    using State = typename Work::State;
    using Own = typename Work::Own;
    using Gradients = ThreadSums<typename Work::Gradients, Plan>;
    constexpr bool backward = !std::is_same_v<typename Work::Gradients, NoGradients>;
    const int limit = useful_threads(plan.elements(), args.threads);
    Bump once = Bump::measure(), each = Bump::measure();
    const Params model(plan, backward, once);
    State(plan, model, each);
    Own(plan, each);
    Bump bump(workspace(once.taken() + limit * (each.taken() + Gradients::size(plan))));
    const Params params(plan, backward, bump);
    std::vector<State> states;
    std::vector<Own> own;
    states.reserve(limit), own.reserve(limit);
    for (int i = 0; i < limit; ++i) {
        states.emplace_back(plan, params, bump);
        own.emplace_back(plan, bump);
    }
    const Gradients grads(plan, bump.take(limit * Gradients::size(plan)), limit);
    const Work work(plan, params, args);
#pragma omp parallel num_threads(limit)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        params.read(plan, args.params, thread, threads);
        grads.clear(thread);
#pragma omp barrier
        for_samples(plan.batch, thread, threads,
                    [&](int index, Team team) { work.sample(index, team, states[team.first], own, grads.of(thread)); });
        if constexpr (backward) {
            if (args.grad_params) {
#pragma omp barrier
                grads.add(thread, threads);
#pragma omp barrier
                grads.of(0).write(plan, args.grad_params, thread, threads);
            }
        }
    }
    trim_workspace();
}

template <template <class> class Work, class Plan, class Args>
void run(const Plan& plan, const Args& args) {
    with_element(plan.dtype, [&](auto element) { run_typed<Work<typename decltype(element)::type>>(plan, args); });
}

}  // namespace fastattn::FASTATTN_ISA
