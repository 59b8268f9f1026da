// Runs a packaged model where no Python is: run_model FOLDER [threads]. The folder is what export.py wrote: model.pt2, an
// input, and the output that is expected of it.
#include <ATen/Parallel.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

constexpr double kLimit = 1e-4;  // of the output's norm; export.py has compared it with float64

at::Tensor load(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    return torch::jit::pickle_load(bytes).toTensor();
}

double euclidean(const at::Tensor& x) { return at::linalg_vector_norm(x.to(at::kDouble)).item<double>(); }

double seconds(torch::inductor::AOTIModelPackageLoader& model, const std::vector<at::Tensor>& inputs) {
    const auto start = std::chrono::steady_clock::now();
    model.run(inputs);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int main(int argc, char** argv) try {
    if (argc < 2) throw std::runtime_error("usage: run_model FOLDER [threads]");
    const std::string folder = std::string(argv[1]) + "/";
    if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
    const c10::InferenceMode guard;
    torch::inductor::AOTIModelPackageLoader model(folder + "model.pt2");
    const std::vector<at::Tensor> inputs{load(folder + "input.pt")};
    const at::Tensor expected = load(folder + "output.pt");

    const double error = euclidean(model.run(inputs).at(0).sub(expected)) / euclidean(expected);
    std::printf("relative error %.1e\n", error);
    if (!(error <= kLimit)) throw std::runtime_error("the output is not the one that is expected");

    double least = seconds(model, inputs), total = 0;
    for (int i = 0; i < 100 && total < 5; ++i) {
        const double time = seconds(model, inputs);
        total += time;
        least = std::min(least, time);
    }
    std::printf("%.1f images/s on %d threads\n", inputs[0].size(0) / least, at::get_num_threads());
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "run_model: %s\n", error.what());
    return 1;
}
