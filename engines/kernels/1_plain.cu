// Step 1: the cross term written down literally. On a GPU, later steps are tested against this one.
//
//   partial[s][row] = sum_{m in slice s} weights[m] 2^(-|x[row] - bank[m]|^2 / 2)
//     x (rows, d), bank (bank_rows, d): written by mdmf_prepare.  weights (bank_rows,).  partial (slices, rows).
//
// A thread takes a row. Grid: (row tiles, shares of the slices). Differences are taken directly and summed in float32,
// kernel values in float64.
// Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int ROWS = THREADS;
constexpr int TILE = 32;  // bank points; a slice is a whole number of tiles
struct Shared {};  // no dynamic shared memory

extern "C" __global__ void __launch_bounds__(THREADS)
    mdmf_cross(const Operand* __restrict__ x, const float*, const Operand* __restrict__ bank, const float*,
               const float* __restrict__ weights, int rows, int bank_rows, int slices, float* __restrict__ partial) {
    const int row = blockIdx.x * ROWS + threadIdx.x;
    if (row >= rows) return;
    const Operand* own = x + static_cast<size_t>(row) * WIDTH;
    const Range mine = share_of(slices, gridDim.y, blockIdx.y);
    for (int slice = mine.first; slice < mine.last; ++slice) {
        const Range tiles = share_of(bank_rows / TILE, slices, slice);
        double sum = 0.0;
        for (int m = tiles.first * TILE; m < tiles.last * TILE; ++m) {
            const Operand* point = bank + static_cast<size_t>(m) * WIDTH;
            // Four partial sums: together they round half as much as a single one.
            float part[4] = {};
#pragma unroll 4
            for (int k = 0; k < WIDTH; ++k) {
                const float difference = to_float(own[k]) - to_float(point[k]);
                part[k % 4] = fmaf(difference, difference, part[k % 4]);
            }
            const float squared = (part[0] + part[1]) + (part[2] + part[3]);
            const float kernel = squared == squared ? exp2_polynomial<6>(-0.5f * squared) : squared;
            sum += double(weights[m]) * kernel;
        }
        partial[static_cast<size_t>(slice) * rows + row] = float(sum);
    }
}
