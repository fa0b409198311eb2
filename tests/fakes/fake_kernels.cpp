// The kernels that the fake driver can launch: `blend` of blend.cu, and the reduction's.
// Built like tests/kernels/library.cpp, which it includes.
#include "library.cpp"

namespace {
// Call kernel(arguments...), reading each argument through its pointer.
template <typename... Parameters, std::size_t... I>
void run(void (*kernel)(Parameters...), void** given, const unsigned* grid, unsigned block, unsigned shared,
         std::index_sequence<I...>) {
    launch(Grid{int(grid[0]), int(grid[1]), int(block), int(shared), 0}, kernel, *static_cast<Parameters*>(given[I])...);
}
template <typename... Parameters> constexpr auto sizes(void (*)(Parameters...)) {
    return std::array<int, sizeof...(Parameters) + 1>{int(sizeof(Parameters))..., 0};
}
template <typename... Parameters> constexpr auto places(void (*)(Parameters...)) {
    return std::index_sequence_for<Parameters...>{};
}
}  // namespace

#define RUNS(name)                                                                                    \
    extern "C" void name##_run(void** given, const unsigned* grid, unsigned block, unsigned shared) { \
        run(name, given, grid, block, shared, places(name));                                          \
    }                                                                                                 \
    extern "C" {                                                                                      \
    decltype(sizes(name)) name##_sizes = sizes(name);                                                 \
    }

RUNS(mdmf_prepare)
RUNS(mdmf_cross)
RUNS(mdmf_finish)

extern "C" void blend_run(void** given, const unsigned* grid, unsigned block, unsigned) {
    float* to = *static_cast<float**>(given[0]);
    const float* from = *static_cast<float**>(given[1]);
    const float by = *static_cast<float*>(given[2]);
    const double add = *static_cast<double*>(given[3]);
    const int count = *static_cast<int*>(given[4]);
    for (unsigned i = 0; i < grid[0] * grid[1] * grid[2] * block; ++i)
        if (int(i) < count) to[i] = float(by * from[i] + add);
}
extern "C" {
int blend_sizes[] = {8, 8, 4, 8, 4, 0};
}
