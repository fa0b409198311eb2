// The two kernels around the cross term. The end of common.cuh includes this.
//
//   prepare   out = scale (x - centre),  half_norms = |out|^2 / 2        then k(a, b) = 2^(a.b - |a|^2/2 - |b|^2/2)
//             within[b][n] = 1/N sum_n' k(out[b][n], out[b][n'])
//   finish    contributions = within - 2 unit sum_slices partial + self_term,   mmd2[b] = 1/N sum_n contributions[b][n]
//
// Rows are signatures, image after image: row = image N + patch. The order of every sum depends only on the image and
// the length of the bank, so an image's bits do not depend on its batch.
#pragma once

constexpr int PREPARE_THREADS = 256;
constexpr int PREPARE_WARPS = PREPARE_THREADS / LANES;
constexpr int PREPARED_ROWS = 32;                 // most rows of a block
constexpr int COLUMN_THREADS = 4;                 // threads that share a column, and rows it is compared with at a time
constexpr int COLUMNS = PREPARE_THREADS / COLUMN_THREADS;
constexpr int COLUMN_WORDS = WIDTH / 4 / COLUMN_THREADS;  // float4 of a column that a thread holds
constexpr int FINISH_THREADS = 512;
constexpr int FINISHED_ROWS = 64;                 // at a time
constexpr int FINISH_PARTS = FINISH_THREADS / FINISHED_ROWS;
constexpr int FINISH_LOADS = 16;                  // of a thread at a time

// Centre, scale and clamp a number of a signature. value * 0 is 0 for a finite value, else NaN.
__device__ __forceinline__ float prepared(float value, float centre, float scale) {
    return fmaf(value, 0.0f, clamped(scale * (value - centre)));
}

// What store_value would return. The compiler drops the row.
__device__ __forceinline__ float rounded(float value) {
    Operand row[ROW_OPERANDS];
    return store_value(row, 0, value);
}

// Load a thread's words of a signature, every COLUMN_THREADS-th from its own on, prepared and rounded.
__device__ __forceinline__ void load_column(float4 (&words)[COLUMN_WORDS], const float* __restrict__ x,
                                            const float* __restrict__ centre, float scale) {
    const int first = threadIdx.x % COLUMN_THREADS;
    if (reinterpret_cast<size_t>(x) % sizeof(float4) == 0) {
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i)
            words[i] = reinterpret_cast<const float4*>(x)[first + i * COLUMN_THREADS];
    } else {
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i) {
            const float* from = x + 4 * (first + i * COLUMN_THREADS);
            words[i] = {from[0], from[1], from[2], from[3]};
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMN_WORDS; ++i) {
        const float4 centres = reinterpret_cast<const float4*>(centre)[first + i * COLUMN_THREADS];
        words[i].x = rounded(prepared(words[i].x, centres.x, scale));
        words[i].y = rounded(prepared(words[i].y, centres.y, scale));
        words[i].z = rounded(prepared(words[i].z, centres.z, scale));
        words[i].w = rounded(prepared(words[i].w, centres.w, scale));
    }
}

// Add up four sums over the four threads of a column. Thread i returns sum i.
__device__ __forceinline__ float sum_of_column(const float (&sums)[COLUMN_THREADS]) {
    const bool second = threadIdx.x % 2 != 0, last = threadIdx.x % 4 >= 2;
    const float even = (last ? sums[2] : sums[0]) + shuffle_xor(last ? sums[0] : sums[2], 2);
    const float odd = (last ? sums[3] : sums[1]) + shuffle_xor(last ? sums[1] : sums[3], 2);
    return (second ? odd : even) + shuffle_xor(second ? even : odd, 1);
}

// A block takes some of an image's rows and compares them with all of its rows, the columns. Grid: (images, chunks of
// rows). x (images * patches, d), centre (d,), out like x, half_norms and within (images * patches,).
//
// Four threads hold a column in registers while the block's rows pass, four at a time, from shared memory. All threads
// of a warp read the same row. Differences are taken directly, so k(x, x) is exactly 1.
extern "C" __global__ void __launch_bounds__(PREPARE_THREADS, WIDTH > 128 ? 1 : 2)
    mdmf_prepare(const float* __restrict__ x, const float* __restrict__ centre, float scale, int patches,
                 Operand* __restrict__ out, float* __restrict__ half_norms, float* __restrict__ within) {
    constexpr int WORDS = WIDTH / 4;
    constexpr int PITCH = COLUMNS + 1;
    __shared__ float4 rows[PREPARED_ROWS * WORDS];
    __shared__ float sums[PREPARED_ROWS * PITCH];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int part = threadIdx.x % COLUMN_THREADS, column = threadIdx.x / COLUMN_THREADS;
    const size_t image = static_cast<size_t>(blockIdx.x) * patches;
    const Range mine = share_of(patches, gridDim.y, blockIdx.y);
    const int here = mine.last - mine.first;
    const auto load = [&](float4(&words)[COLUMN_WORDS], int patch) {
        load_column(words, x + (image + min(patch, patches - 1)) * WIDTH, centre, scale);
    };
    // In a small image the block's rows are among the first columns. In a large one they are loaded apart.
    const bool small = patches <= COLUMNS;
    const int first = small ? column : mine.first + column;
    float4 own[COLUMN_WORDS];
    load(own, first);
    const int staged = first - mine.first;
    float norm = 0.0f;
    if (staged >= 0 && staged < here) {
        float norms[4] = {};
#pragma unroll
        for (int i = 0; i < COLUMN_WORDS; ++i) {
            const int word = i * COLUMN_THREADS + part;
            const float values[4] = {own[i].x, own[i].y, own[i].z, own[i].w};
            rows[staged * WORDS + word] = own[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                norms[j] = fmaf(values[j], values[j], norms[j]);
                // Rounding what is rounded already changes nothing.
                store_value(out + (image + first) * ROW_OPERANDS, 4 * word + j, values[j]);
            }
        }
        norm = (norms[0] + norms[1]) + (norms[2] + norms[3]);
    }
    norm += shuffle_xor(norm, 1);
    norm += shuffle_xor(norm, 2);
    if (part == 0 && staged >= 0 && staged < here) half_norms[image + first] = 0.5f * norm;
    __syncthreads();
    // Warps without a column leave the loop together.
    for (int start = 0; start + column / 8 * 8 < patches; start += COLUMNS) {
        if (start > 0 || !small) load(own, start + column);
        // Rows past the last hold anything. Nobody reads their sums.
        for (int at = 0; at < here; at += COLUMN_THREADS) {
            float squared[COLUMN_THREADS] = {};
#pragma unroll
            for (int i = 0; i < COLUMN_WORDS; ++i) {
#pragma unroll
                for (int j = 0; j < COLUMN_THREADS; ++j) {
                    const float4 other = rows[(at + j) * WORDS + i * COLUMN_THREADS + part];
                    const float a = own[i].x - other.x, b = own[i].y - other.y;
                    const float c = own[i].z - other.z, d = own[i].w - other.w;
                    squared[j] = fmaf(d, d, fmaf(c, c, fmaf(b, b, fmaf(a, a, squared[j]))));
                }
            }
            const float kernel = exp2_special(-0.5f * sum_of_column(squared));
            float& sum = sums[(at + part) * PITCH + column];
            if (start + column < patches) sum = start > 0 ? sum + kernel : kernel;
        }
    }
    __syncthreads();
    for (int at = warp; at < here; at += PREPARE_WARPS) {
        float sum = 0.0f;
        for (int i = lane; i < min(COLUMNS, patches); i += LANES) sum += sums[at * PITCH + i];
#pragma unroll
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (lane == 0) within[image + mine.first + at] = sum / float(patches);
    }
}

// A block takes an image. partial (slices, images * patches), within (images * patches,), contributions
// (images, patches), mmd2 (images,).
//
// A thread takes a row and every FINISH_PARTS-th slice, and loads FINISH_LOADS of them before it adds them up: what
// this kernel takes is the latency of its loads.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS, 1)
    mdmf_finish(const float* __restrict__ partial, const float* __restrict__ within, int slices, int images,
                int patches, float unit, double self_term, double* __restrict__ contributions,
                double* __restrict__ mmd2) {
    __shared__ double sums[FINISH_THREADS];
    const size_t rows = static_cast<size_t>(images) * patches;
    const int part = threadIdx.x / FINISHED_ROWS;
    double sum = 0.0;
    for (int start = 0; start < patches; start += FINISHED_ROWS) {
        const int patch = start + threadIdx.x % FINISHED_ROWS;
        const size_t row = static_cast<size_t>(blockIdx.x) * patches + min(patch, patches - 1);
        const float own = within[row];
        double cross = 0.0;
        for (int first = part; first < slices; first += FINISH_PARTS * FINISH_LOADS) {
            float loaded[FINISH_LOADS];
#pragma unroll
            for (int i = 0; i < FINISH_LOADS; ++i) {
                const int slice = first + i * FINISH_PARTS;
                // A load under a condition would be moved to the sum below, which waits for it.
                const float value = partial[min(slice, slices - 1) * rows + row];
                loaded[i] = slice < slices ? value : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < FINISH_LOADS; ++i) cross += double(loaded[i]);
        }
        sums[threadIdx.x] = cross;
        __syncthreads();
        if (part == 0 && patch < patches) {
#pragma unroll
            for (int i = 1; i < FINISH_PARTS; ++i) cross += sums[threadIdx.x + i * FINISHED_ROWS];
            const double contribution = double(own) - 2.0 * double(unit) * cross + self_term;
            contributions[row] = contribution;
            sum += contribution;
        }
        __syncthreads();
    }
    if (part == 0) sums[threadIdx.x] = sum;
    for (int half = FINISHED_ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) mmd2[blockIdx.x] = sums[0] / patches;
}
