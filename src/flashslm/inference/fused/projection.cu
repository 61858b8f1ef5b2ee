// out = weight norm(x) for a few inputs x, with what comes before and after the product fused in.
//
// Shapes (SIZE input columns, `rows` output rows, BATCH inputs):
//   block    ROW_WARPS x COLUMN_WARPS warps compute BLOCK_N outputs: each of the ROW_WARPS strips has TILE weight rows
//            (with SWIGLU half of them gate, half up), each of the COLUMN_WARPS warps of a strip has a part of the columns
//   warp     TILE rows x K_TILES_PER_WARP tiles of 256 columns: LOADS_PER_WARP loads of one row and one tile each
//   lane     8 consecutive columns (16 bytes) of each load, so that a warp reads 512 consecutive bytes
//            With INT8 weights twice as many columns: 16 of a lane, 512 of a tile
//
// The tensor core as a vector unit: mma.m16n8k16 multiplies a 16x16 matrix A by a 16x8 matrix B. Its fragments give lane
// l = 4 g + t the elements of A's rows g and g + 8 and of B's column g. Each lane puts its own 8 columns of x into A and the
// same 8 columns of the weight row into B, 2 instructions with 4 columns each:
//
//            B: weights of lanes 0-3, 4-7, ..., 28-31           The product of group g's x with group g's weights is
//          +--------------------------------------+             element (g, g): the diagonal. The other elements mix
//   A: x   | lanes 0-3   *  .  .  .  .  .  .  .   |             the columns of different lanes and are dropped.
//   of     | lanes 4-7   .  *  .  .  .  .  .  .   |             Rows 8 to 15 of A hold a second input at no extra cost.
//   lanes  | ...                                  |             The sum of the 8 diagonal elements is the warp's part
//          | lanes 28-31 .  .  .  .  .  .  .  *   |             of the row's product.
//          +--------------------------------------+
//
// With INT8 the weights are whole numbers, -127 to 127, times a scale per row, and mma.m16n8k32 multiplies them as they
// are: converting them would take longer than reading them. Rows 0 to 7 of A hold the high bytes of x, rows 8 to 15 the low
// bytes: x as whole numbers of 16 bits times a scale per group of four lanes, which the group's diagonal element takes.
// The largest rounding error is 2^-16 of the largest x of the group's columns.
//
// Phases: load (weights, norm) | wait for the kernel that computes x | prologue (x, its norm) | main loop | epilogue.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
#if INT8
typedef int Sum;
#else
typedef float Sum;
#endif

#ifndef EMULATED  // a test compiles the rest for a CPU and has its own forms of these
#include "ptx.cuh"
extern __shared__ __align__(128) unsigned char shared[];
#endif

constexpr int WARPS = COLUMN_WARPS * ROW_WARPS;
constexpr int THREADS = WARPS * 32;
constexpr int VECTORS = INT8 ? 2 : 1;                                   // of 8 inputs, which 16 bytes of weights meet
constexpr int VALUES = 8 * VECTORS;                                     // columns of a lane
constexpr int K_TILE = 32 * VALUES;                                     // columns of a load
constexpr int K_TILES = (SIZE + K_TILE - 1) / K_TILE;
constexpr int K_TILES_PER_WARP = (K_TILES + COLUMN_WARPS - 1) / COLUMN_WARPS;
constexpr int LOADS_PER_WARP = K_TILES_PER_WARP * TILE;
constexpr int PREFETCHED_LOADS = IN_REGISTERS + IN_SHARED;              // before the wait for x, where there are as many
constexpr int ISSUED_LOADS = LOADS_PER_WARP < PREFETCHED_LOADS ? LOADS_PER_WARP : PREFETCHED_LOADS;
constexpr int OUTPUTS_PER_WARP = SWIGLU ? TILE / 2 : TILE;
constexpr int BLOCK_N = OUTPUTS_PER_WARP * ROW_WARPS;                   // output rows of a block
constexpr int OUTPUTS_PER_THREAD = (BLOCK_N * BATCH + THREADS - 1) / THREADS;
constexpr int PRODUCTS = INT8 ? BATCH : (BATCH + 1) / 2;                // of the tensor core: two inputs, or bytes, each
constexpr int INPUTS = INT8 ? BATCH : 2 * PRODUCTS;
constexpr int CONV_SIZE = 4;                                            // taps of the convolution that reads the ring
constexpr bool SCALED_FIRST = HALF && NORM && !HEAD_DIM;

struct Arguments {
    const u16* x;
    const void* norm;
    const void* weight;
    const float* scales;
    void* out;
    u16* rounded;
    u16* ring;
    const long long* lengths;
    float* best;
    int* best_row;
    int rows;
    float eps;
    int ring_start;
    int ring_rows;
};

// The sums over all lanes of TILE values: lane l returns that of value l TILE / 32.
__device__ __forceinline__ float summed(float (&v)[TILE], int lane) {
    int bit = 16;
#pragma unroll
    for (int half = TILE / 2; half > 0; half /= 2, bit /= 2) {
#pragma unroll
        for (int i = 0; i < half; i++) {
            const bool upper = lane & bit;
            const float other = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + half], bit);
            v[i] = (upper ? v[i + half] : v[i]) + other;
        }
    }
#pragma unroll
    for (; bit > 0; bit /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], bit);
    return v[0];
}

// The element of a product that is a lane's group's own; 0 for lanes that do not hold it. `second`: of rows 8 to 15.
template <class T>
__device__ __forceinline__ T diagonal(const T (&sum)[4], int lane, bool second = false) {
    const T even = second ? sum[2] : sum[0], odd = second ? sum[3] : sum[1];
    return lane % 4 == lane / 8 ? (lane / 4 % 2 ? odd : even) : 0;
}

#include "norm.cuh"
#if INT8
#include "int8.cuh"
#endif

// The scale that normalises input b.
__device__ __forceinline__ float scale_of(const float (&squares_of)[COLUMN_WARPS][BATCH], float eps, int b) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < COLUMN_WARPS; w++) total += squares_of[w][b];
    return rsqrtf(total * (1.0f / SIZE) + eps);
}

// A row's product with input b: the sum of all warps' parts, scaled and gated. `row` has the scales of INT8 weights.
__device__ __forceinline__ float product(
    const float (&sums)[COLUMN_WARPS][BATCH][TILE], const float (&squares_of)[COLUMN_WARPS][BATCH], float eps, float2 row,
    int b, int r) {
    float y = 0, up = 0, scale = 1;
#pragma unroll
    for (int w = 0; w < COLUMN_WARPS; w++) {
        y += sums[w][b][r];
        if (SWIGLU) up += sums[w][b][OUTPUTS_PER_WARP + r];
    }
    if (NORM && !HEAD_DIM && !SCALED_FIRST) scale = scale_of(squares_of, eps, b);
    if (INT8) y *= row.x, up *= row.y;
    y *= scale;
    return SWIGLU ? __fdividef(y, 1.0f + __expf(-y)) * (up * scale) : y;
}

__device__ __forceinline__ void store(const Arguments& a, float y, int b, int row, int turn) {
    const int to = b * a.rows + row, channel = row - a.ring_start;
    const u16 narrow = (u16)pack(y, 0.0f);
    if (RESIDUAL) a.rounded[to] = narrow;
    if (RING && channel >= 0 && channel < a.ring_rows)
        a.ring[(size_t)turn * a.ring_rows + channel] = narrow;
    else if (OUT_FLOAT)
        static_cast<float*>(a.out)[to] = y;
    else
        static_cast<u16*>(a.out)[to] = narrow;
}

// The highest of the block's outputs for input b, the first among equals; BLOCK_N lanes together.
__device__ __forceinline__ void store_best(const Arguments& a, float score, int row, int b, bool writes) {
#pragma unroll
    for (int lanes = BLOCK_N / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, score, lanes);
        const int other_row = __shfl_xor_sync(0xffffffffu, row, lanes);
        if (other > score || (other == score && other_row < row)) score = other, row = other_row;
    }
    if (writes) {
        a.best[b * gridDim.x + blockIdx.x] = score;
        a.best_row[b * gridDim.x + blockIdx.x] = row;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) project(const __grid_constant__ Arguments a) {
    __shared__ float sums[ROW_WARPS][COLUMN_WARPS][BATCH][TILE];
    __shared__ float squares_of[ROW_WARPS][COLUMN_WARPS][BATCH];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int strip = warp / COLUMN_WARPS, part = warp % COLUMN_WARPS;
    const int first = blockIdx.x * BLOCK_N, mine = first + strip * OUTPUTS_PER_WARP, column = part * K_TILE + lane * VALUES;
    const u64 policy = read_once();
    auto row_of = [&](int r) { return mine + (SWIGLU && r >= OUTPUTS_PER_WARP ? r - OUTPUTS_PER_WARP : r); };
    auto inside = [&](int i) {
        return row_of(i / K_TILES_PER_WARP) < a.rows && column + i % K_TILES_PER_WARP * COLUMN_WARPS * K_TILE < SIZE;
    };
    auto place = [&](int i) {
        const int r = i / K_TILES_PER_WARP;
        const size_t row = row_of(r) + (SWIGLU && r >= OUTPUTS_PER_WARP ? a.rows : 0);
        const size_t value = row * SIZE + column + i % K_TILES_PER_WARP * COLUMN_WARPS * K_TILE;
        return static_cast<const unsigned char*>(a.weight) + value * (INT8 ? 1 : 2);
    };

    // Load: the first IN_REGISTERS loads of weights go to registers, the next IN_SHARED to shared memory, before the wait.
    uint4 held[IN_REGISTERS];
    // The shuffle keeps the base out of uniform registers: ptxas 13.0 encodes a copy with base and policy there wrongly.
    const u32 slot = __shfl_sync(0xffffffffu, shared_address(shared) + thread * 16, lane);
#pragma unroll
    for (int i = 0; i < IN_REGISTERS; i++)
        if (i < LOADS_PER_WARP) held[i] = load_weights(place(i), inside(i), policy);
#pragma unroll
    for (int i = IN_REGISTERS; i < ISSUED_LOADS; i++)
        copy_weights(slot + (i - IN_REGISTERS) * THREADS * 16, place(i), inside(i), policy);
    Norms norms[NORM ? K_TILES_PER_WARP : 1][VECTORS];
    if (NORM) {
#pragma unroll
        for (int p = 0; p < K_TILES_PER_WARP; p++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                const int at = column + p * COLUMN_WARPS * K_TILE + v * 8;
                norms[p][v].load(a.norm, at < SIZE ? (HEAD_DIM ? at % (HEAD_DIM ? HEAD_DIM : 1) : at) : 0);
            }
    }
    float2 row_scales[OUTPUTS_PER_THREAD];  // of INT8 weights: a row's, with SWIGLU the gate's and the one above it
    if (INT8) {
#pragma unroll
        for (int f = 0; f < OUTPUTS_PER_THREAD; f++) {
            const int at = first + (f * THREADS + thread) % BLOCK_N, row = at < a.rows ? at : 0;
            row_scales[f] = make_float2(a.scales[row], SWIGLU ? a.scales[a.rows + row] : 1.0f);
        }
    }
    int turn[OUTPUTS_PER_THREAD];  // where a sequence's ring takes the present token
    if (RING) {
#pragma unroll
        for (int f = 0; f < OUTPUTS_PER_THREAD; f++) {
            const int b = (f * THREADS + thread) / BLOCK_N;
            turn[f] = b < BATCH ? b * CONV_SIZE + (int)(a.lengths[b] % CONV_SIZE) : 0;
        }
    }
    wait_for_inputs();

    // Prologue: x, the stream that the outputs are added to, and the norm of x.
    uint4 x[INPUTS][K_TILES_PER_WARP][VECTORS];
#pragma unroll
    for (int b = 0; b < INPUTS; b++)
#pragma unroll
        for (int p = 0; p < K_TILES_PER_WARP; p++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                const int at = column + p * COLUMN_WARPS * K_TILE + v * 8;
                x[b][p][v] = b < BATCH && at < SIZE ? load_input(a.x + b * SIZE + at) : make_uint4(0, 0, 0, 0);
            }
    float old[OUTPUTS_PER_THREAD];
    if (RESIDUAL) {
#pragma unroll
        for (int f = 0; f < OUTPUTS_PER_THREAD; f++) {
            const int at = f * THREADS + thread, row = first + at % BLOCK_N;
            old[f] = at < BLOCK_N * BATCH && row < a.rows
                         ? __ldcg(static_cast<const float*>(a.out) + at / BLOCK_N * a.rows + row)
                         : 0.0f;
        }
    }
    if (NORM) {
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            float squares = 0;
#if PACKED_NORM
            squares = normalise_packed(x[b], norms, lane);
#else
#pragma unroll
            for (int p = 0; p < K_TILES_PER_WARP; p++) {
                if (SCALED_FIRST) {
#pragma unroll
                    for (int v = 0; v < VECTORS; v++) squares += squares_in(x[b][p][v]);
                } else {
                    normalise(x[b][p], norms[p], a.eps, squares);
                }
            }
#endif
            if (!HEAD_DIM) {
#pragma unroll
                for (int lanes = 16; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
                if (lane == 0) squares_of[strip][part][b] = squares;
            }
        }
    }

    if (SCALED_FIRST) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const float scale = scale_of(squares_of[strip], a.eps, b);
            float squares = 0;
#pragma unroll
            for (int p = 0; p < K_TILES_PER_WARP; p++) normalise(x[b][p], norms[p], a.eps, squares, scale);
        }
    }
#if INT8
    float unit[BATCH];
#pragma unroll
    for (int b = 0; b < BATCH; b++) unit[b] = quantise(x[b]);
#endif

    // Main loop over the weights: those that wait in registers and in shared memory, then the others, which are loaded as
    // registers become free.
    float products[BATCH][TILE];
#pragma unroll
    for (int r = 0; r < TILE; r++) {
        Sum sum[PRODUCTS][4] = {};
#pragma unroll
        for (int p = 0; p < K_TILES_PER_WARP; p++) {
            const int i = r * K_TILES_PER_WARP + p;
            uint4 w;
            if (i >= IN_REGISTERS && i < PREFETCHED_LOADS) {
                if (i == IN_REGISTERS || (ISSUED_LOADS - 1 - i) % 4 == 3)
                    wait_copies(i == IN_REGISTERS ? (ISSUED_LOADS - 1 - i) / 4 * 4 : ISSUED_LOADS - 1 - i - 3);
                w = *reinterpret_cast<uint4*>(shared + ((i - IN_REGISTERS) * THREADS + thread) * 16);
            } else {
                const int s = i < IN_REGISTERS ? i : (i - PREFETCHED_LOADS) % IN_REGISTERS;
                w = held[s];
                const int next = i < IN_REGISTERS ? i + PREFETCHED_LOADS : i + IN_REGISTERS;
                if (next < LOADS_PER_WARP) held[s] = load_weights(place(next), inside(next), policy);
            }
#pragma unroll
            for (int q = 0; q < PRODUCTS; q++) {
                const uint4 u = INT8 ? x[q][p][0] : x[2 * q][p][0], v = INT8 ? x[q][p][VECTORS - 1] : x[2 * q + 1][p][0];
                multiply(sum[q], u.x, v.x, u.y, v.y, w.x, w.y);
                multiply(sum[q], u.z, v.z, u.w, v.w, w.z, w.w);
            }
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
#if INT8
            const float high = diagonal(sum[b], lane), low = diagonal(sum[b], lane, true);
            products[b][r] = fmaf(high, 256.0f, low) * unit[b];
#else
            products[b][r] = diagonal(sum[b / 2], lane, b % 2);
#endif
        }
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
        const float y = summed(products[b], lane);
        if (lane % (32 / TILE) == 0) sums[strip][part][b][lane * TILE / 32] = y;
    }
    __syncthreads();

    // Epilogue: the warps' parts added, scaled, gated, added to the stream, stored.
#pragma unroll
    for (int f = 0; f < OUTPUTS_PER_THREAD; f++) {
        const int at = f * THREADS + thread, b = at / BLOCK_N, r = at % BLOCK_N;
        const int row = first + r, from = r / OUTPUTS_PER_WARP;
        const bool finished = at < BLOCK_N * BATCH && row < a.rows;
        float y = 0;
        if (finished) {
            y = product(sums[from], squares_of[from], a.eps, row_scales[f], b, r % OUTPUTS_PER_WARP);
            if (RESIDUAL) y += old[f];
            store(a, y, b, row, RING ? turn[f] : 0);
        }
        if (BEST) store_best(a, finished ? y : -__int_as_float(0x7f800000), row, b, r == 0 && at < BLOCK_N * BATCH);
    }
}
