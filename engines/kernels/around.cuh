// The three kernels around the cross term, the same for every step.
//
//   prepare   out = scale (x - centre),  half_norms = |out|^2 / 2        then k(a, b) = 2^(a.b - |a|^2/2 - |b|^2/2)
//   within    within[b][n] = 1/N sum_n' k(x[b][n], x[b][n'])
//   finish    contributions = within - 2 unit sum_slices partial + self_term,   mmd2[b] = 1/N sum_n contributions[b][n]
//
// Rows are an image's signatures after another's: row = image N + patch.  Every sum has an order that depends on the
// image alone, so its bits do not depend on the batch.
// Reference: mdmf_deploy.mmd.reference.ReferenceReduction (float64).
#pragma once

constexpr int AROUND_THREADS = 128;
constexpr int PREPARED_ROWS = 32;
constexpr int WITHIN_ROWS = 32;
constexpr int LANES = 32;

// One block for PREPARED_ROWS rows.  x (rows, d), centre (d,), out (rows, d), half_norms (rows,).
extern "C" __global__ void __launch_bounds__(AROUND_THREADS)
    mdmf_prepare(const float* __restrict__ x, const float* __restrict__ centre, float scale, int rows,
                 Operand* __restrict__ out, float* __restrict__ half_norms) {
    // Four words more a row put the four threads of eight rows into 32 banks.
    constexpr int PITCH = WIDTH + 4;
    __shared__ float values[PREPARED_ROWS * PITCH];
    __shared__ float quarters[AROUND_THREADS];
    const int first = blockIdx.x * PREPARED_ROWS;
    const int here = min(PREPARED_ROWS, rows - first);
    for (int i = threadIdx.x; i < here * WIDTH; i += AROUND_THREADS) {
        const int row = i / WIDTH, k = i % WIDTH;
        const size_t place = static_cast<size_t>(first) * WIDTH + i;
        const float value = x[place];
        // value - value is 0, or NaN where value is infinite or NaN.
        const Operand rounded = to_operand(clamped(scale * (value - centre[k])) + (value - value));
        out[place] = rounded;
        values[row * PITCH + k] = to_float(rounded);
    }
    __syncthreads();
    const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
    float sum = 0.0f;
    if (row < here) {
        for (int k = quarter; k < WIDTH; k += 4) {
            const float value = values[row * PITCH + k];
            sum = fmaf(value, value, sum);
        }
    }
    quarters[threadIdx.x] = sum;
    __syncthreads();
    if (quarter == 0 && row < here) {
        const float* part = quarters + threadIdx.x;
        half_norms[first + row] = 0.5f * ((part[0] + part[1]) + (part[2] + part[3]));
    }
}

// One block for WITHIN_ROWS rows of an image: grid (images, chunks of rows).  A lane takes a column x', a warp eight
// rows.  Differences are taken directly, so that k(x, x) is 1 and half_norms are not needed.
extern "C" __global__ void __launch_bounds__(AROUND_THREADS)
    mdmf_within(const Operand* __restrict__ x, const float*, int, int patches, float* __restrict__ within) {
    constexpr int WARP_ROWS = WITHIN_ROWS * LANES / AROUND_THREADS;
    constexpr int PITCH = WIDTH + 1;
    __shared__ float columns[LANES * PITCH];
    __shared__ float sums[WITHIN_ROWS * (LANES + 1)];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const Operand* image = x + static_cast<size_t>(blockIdx.x) * patches * WIDTH;
    const int first = blockIdx.y * WITHIN_ROWS;
    const Operand* rows[WARP_ROWS];
#pragma unroll
    for (int i = 0; i < WARP_ROWS; ++i) rows[i] = image + min(first + warp * WARP_ROWS + i, patches - 1) * WIDTH;
    float total[WARP_ROWS] = {};
    for (int start = 0; start < patches; start += LANES) {
        const int here = min(LANES, patches - start);
        __syncthreads();
        for (int i = threadIdx.x; i < here * WIDTH; i += AROUND_THREADS)
            columns[i / WIDTH * PITCH + i % WIDTH] = to_float(image[start * WIDTH + i]);
        __syncthreads();
        if (lane < here) {
            float squared[WARP_ROWS] = {};
#pragma unroll 4
            for (int k = 0; k < WIDTH; ++k) {
                const float column = columns[lane * PITCH + k];
#pragma unroll
                for (int i = 0; i < WARP_ROWS; ++i) {
                    const float difference = to_float(rows[i][k]) - column;
                    squared[i] = fmaf(difference, difference, squared[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < WARP_ROWS; ++i)
                // fmaxf in exp2_polynomial would take a number for NaN.
                total[i] += squared[i] == squared[i] ? exp2_polynomial<6>(-0.5f * squared[i]) : squared[i];
        }
    }
#pragma unroll
    for (int i = 0; i < WARP_ROWS; ++i) sums[(warp * WARP_ROWS + i) * (LANES + 1) + lane] = total[i];
    __syncthreads();
    const int row = first + threadIdx.x;
    if (threadIdx.x < WITHIN_ROWS && row < patches) {
        float sum = 0.0f;
        for (int i = 0; i < LANES; ++i) sum += sums[threadIdx.x * (LANES + 1) + i];
        within[static_cast<size_t>(blockIdx.x) * patches + row] = sum / float(patches);
    }
}

// One block an image.  partial (slices, images * patches), within (images * patches,), contributions (images, patches),
// mmd2 (images,).
extern "C" __global__ void __launch_bounds__(AROUND_THREADS)
    mdmf_finish(const float* __restrict__ partial, const float* __restrict__ within, int slices, int images,
                int patches, float unit, double self_term, double* __restrict__ contributions,
                double* __restrict__ mmd2) {
    __shared__ double sums[AROUND_THREADS];
    const size_t rows = static_cast<size_t>(images) * patches;
    double sum = 0.0;
    for (int patch = threadIdx.x; patch < patches; patch += AROUND_THREADS) {
        const size_t row = static_cast<size_t>(blockIdx.x) * patches + patch;
        double cross = 0.0;
#pragma unroll 8
        for (int slice = 0; slice < slices; ++slice) cross += double(partial[slice * rows + row]);
        const double contribution = double(within[row]) - 2.0 * double(unit) * cross + self_term;
        contributions[row] = contribution;
        sum += contribution;
    }
    sums[threadIdx.x] = sum;
    for (int half = AROUND_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) mmd2[blockIdx.x] = sums[0] / patches;
}
