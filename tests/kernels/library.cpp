// A kernel's source as a shared library for ctypes: a launcher for every entry point, and the kernel's constants.
// Built with -include host.hpp and -DMDMF_SOURCE="<the .cu file>".
#include MDMF_SOURCE

struct Grid {
    int x, y, block, shared, backwards;
};

namespace {
template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void (*kernel)(Parameters...), Arguments... arguments) {
    const dim3 blocks{unsigned(grid.x), unsigned(grid.y), 1};
    host::machine.run(blocks, grid.block, std::size_t(grid.shared), grid.backwards != 0, [=] { kernel(arguments...); });
}
}  // namespace

extern "C" {

int host_rows = ROWS, host_tile = TILE, host_threads = THREADS;
int host_shared = std::is_empty_v<Shared> ? 0 : int(sizeof(Shared));
int host_prepare_threads = PREPARE_THREADS, host_prepared_rows = PREPARED_ROWS, host_finish_threads = FINISH_THREADS;

void host_late(int late) { host::late = late != 0; }

void host_prepare(Grid grid, const float* x, const float* centre, float scale, int patches, Operand* out,
                  float* half_norms, float* within) {
    launch(grid, mdmf_prepare, x, centre, scale, patches, out, half_norms, within);
}
void host_cross(Grid grid, const Operand* x, const float* x_half_norms, const Operand* bank,
                const float* bank_half_norms, const float* weights, int rows, int bank_rows, int slices,
                float* partial) {
    launch(grid, mdmf_cross, x, x_half_norms, bank, bank_half_norms, weights, rows, bank_rows, slices, partial);
}
void host_finish(Grid grid, const float* partial, const float* within, int slices, int images, int patches, float unit,
                 double self_term, double* contributions, double* mmd2) {
    launch(grid, mdmf_finish, partial, within, slices, images, patches, unit, self_term, contributions, mmd2);
}
int host_place_of(int point, int word) { return place_of<ROW_BYTES / 16>(point, word); }
void host_exp2(const float* x, int count, int degree, float* out) {
    for (int i = 0; i < count; ++i) out[i] = degree == 4 ? exp2_polynomial<4>(x[i]) : exp2_polynomial<6>(x[i]);
}
}
