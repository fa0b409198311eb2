// Step 2: the cross term as a float32 matrix product through shared memory.
//
//   partial[s][row] = sum_{m in slice s} weights[m] 2^(x[row].bank[m] - |x[row]|^2/2 - |bank[m]|^2/2)
//     x (rows, d), bank (bank_rows, d), half norms and weights as in step 1.  partial (slices, rows).
//
// A block takes ROWS rows (packed, of any images) and a share of the slices. A tile of the bank passes through shared
// memory DEPTH columns at a time, together with the same columns of the rows, copied asynchronously one step ahead. A
// thread takes every 16th row and every 16th point and holds 64 products in registers. Points beyond the bank are
// padding of weight 0.
// Reference: 1_plain.cu on the device, mdmf_deploy.mmd.reference.ReferenceReduction (float64) elsewhere.
#include "common.cuh"

static_assert(sizeof(Operand) == 4, "step 2 multiplies float32");
constexpr int SIDE = 16;                // threads along the rows, and as many along the points
constexpr int THREADS = SIDE * SIDE;
constexpr int EACH = 8;                 // rows per thread, and as many points
constexpr int ROWS = SIDE * EACH;
constexpr int TILE = SIDE * EACH;
constexpr int DEPTH = 16;
// Four extra floats per row: the eight 16-byte words that eight threads read at a time lie in 32 different banks.
constexpr int PITCH = DEPTH + 4;
constexpr int STEPS = WIDTH / DEPTH;    // steps per tile
constexpr int SPECIAL = 3;              // of 4 kernel values from the special-function unit, the fourth by polynomial

struct Shared {
    float x[2][ROWS * PITCH];
    float bank[2][TILE * PITCH];
    float sums[ROWS * (SIDE + 1)];
};

// Start copying DEPTH columns, from column `k` on, of 128 rows, from `first` on. Rows beyond `last` repeat `last`.
__device__ __forceinline__ void copy_columns(float* to, const float* from, int first, int last, int k) {
    constexpr int WORDS = DEPTH / 4;
    for (int i = threadIdx.x; i < ROWS * WORDS; i += THREADS) {
        const int row = i / WORDS, word = i % WORDS;
        const float* columns = from + static_cast<size_t>(min(first + row, last)) * WIDTH + k;
        copy_async(to + row * PITCH + word * 4, columns + word * 4);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    mdmf_cross(const Operand* __restrict__ x, const float* __restrict__ x_half_norms, const Operand* __restrict__ bank,
               const float* __restrict__ bank_half_norms, const float* __restrict__ weights, int rows, int bank_rows,
               int slices, float* __restrict__ partial) {
    MDMF_DYNAMIC_SHARED(memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int column = threadIdx.x % SIDE, line = threadIdx.x / SIDE;
    const int first_row = blockIdx.x * ROWS;
    const Range mine = share_of(slices, gridDim.y, blockIdx.y);
    const int tiles = bank_rows / TILE;
    const int begin = share_of(tiles, slices, mine.first).first * STEPS;
    const int end = share_of(tiles, slices, mine.last - 1).last * STEPS;

    auto copy_step = [&](int step) {
        if (step < end) {
            const int k = step % STEPS * DEPTH;
            copy_columns(shared.x[step % 2], x, first_row, rows - 1, k);
            copy_columns(shared.bank[step % 2], bank, step / STEPS * TILE, bank_rows - 1, k);
        }
        commit_copies();
    };

    float sums[EACH] = {};
    float products[EACH][EACH] = {};
    int slice = mine.first;
    int slice_end = share_of(tiles, slices, slice).last;
    copy_step(begin);
    for (int step = begin; step < end; ++step) {
        wait_copies<0>();
        // Now this step's columns have arrived and nobody reads the previous ones, which the next copy overwrites.
        __syncthreads();
        copy_step(step + 1);
        const float* own = shared.x[step % 2] + line * PITCH;
        const float* points = shared.bank[step % 2] + column * PITCH;
        // Not unrolled: hoisted loads would need more registers than there are.
#pragma unroll 1
        for (int k = 0; k < DEPTH; k += 4) {
            float4 a[EACH];
#pragma unroll
            for (int i = 0; i < EACH; ++i) a[i] = *reinterpret_cast<const float4*>(own + SIDE * i * PITCH + k);
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const float4 b = *reinterpret_cast<const float4*>(points + SIDE * j * PITCH + k);
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    float& product = products[i][j];
                    product = fmaf(a[i].w, b.w, fmaf(a[i].z, b.z, fmaf(a[i].y, b.y, fmaf(a[i].x, b.x, product))));
                }
            }
        }
        if (step % STEPS != STEPS - 1) continue;

        const int tile = step / STEPS;
        float norms[EACH];
        // Read again for every tile: keeping them would cost the registers that let two blocks share a multiprocessor.
#pragma unroll
        for (int i = 0; i < EACH; ++i) norms[i] = x_half_norms[min(first_row + line + SIDE * i, rows - 1)];
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int point = tile * TILE + column + SIDE * j;
            const float norm = bank_half_norms[point], weight = weights[point];
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const float exponent = fminf(products[i][j] - (norms[i] + norm), 0.0f);
                const float kernel = j % 4 < SPECIAL ? exp2_special(exponent) : exp2_polynomial<DEGREE>(exponent);
                sums[i] = fmaf(weight, kernel, sums[i]);
                products[i][j] = 0.0f;
            }
        }
        if (tile + 1 != slice_end) continue;

#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            shared.sums[(line + SIDE * i) * (SIDE + 1) + column] = sums[i];
            sums[i] = 0.0f;
        }
        __syncthreads();
        const int row = first_row + threadIdx.x;
        if (threadIdx.x < ROWS && row < rows) {
            // Bounding the exponents loses a NaN. The norm brings it back.
            float sum = x_half_norms[row] - x_half_norms[row];
            for (int i = 0; i < SIDE; ++i) sum += shared.sums[threadIdx.x * (SIDE + 1) + i];
            partial[static_cast<size_t>(slice) * rows + row] = sum;
        }
        ++slice;
        slice_end = share_of(tiles, slices, slice).last;
    }
}
