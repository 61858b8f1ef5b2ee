// out = weight norm(x) for a few inputs x, with what comes before and after the product fused in.
//
// A step of a warp is one row by 256 columns, 16 bytes a lane, in the order in which they lie in memory. A lane multiplies
// its columns with the same columns of x, on the tensor core, whose operands' "rows" are then the eight groups of four
// lanes: of their products the diagonal counts. The first IN_REGISTERS steps are asked for into registers, the next
// IN_SHARED into shared memory, all before the wait for the kernel that computes x; others follow as registers become free.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

constexpr int WARPS = COLUMN_WARPS * ROW_WARPS;
constexpr int THREADS = WARPS * 32;
constexpr int PIECES = (SIZE + 255) / 256;                               // of 256 columns
constexpr int MINE = (PIECES + COLUMN_WARPS - 1) / COLUMN_WARPS;         // of them, a warp
constexpr int STEPS = MINE * TILE;                                       // of a warp
constexpr int AHEAD = IN_REGISTERS + IN_SHARED;
constexpr int FILLED = STEPS < AHEAD ? STEPS : AHEAD;
constexpr int OUTPUTS = SWIGLU ? TILE / 2 : TILE;                        // a warp
constexpr int ROWS = OUTPUTS * ROW_WARPS;                                // of the output, a block
constexpr int FINISHED = (ROWS * BATCH + THREADS - 1) / THREADS;
constexpr int PAIRS = (BATCH + 1) / 2;
constexpr bool SCALED_FIRST = HALF && NORM && !HEAD;

struct Arguments {
    const u16* x;
    const void* norm;
    const u16* weight;
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

#ifndef EMULATED  // a test runs the rest on a CPU, with these in C++
extern __shared__ __align__(128) unsigned char shared[];

__device__ __forceinline__ float2 unpack(u32 pair) {
#if HALF
    float2 v;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(v.x), "=f"(v.y) : "r"(pair));
    return v;
#else
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
#endif
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
#if HALF
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

// Weights are read once a step: the L2 cache is for what is read again.
__device__ __forceinline__ u64 read_once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ uint4 load_weights(const u16* from, bool inside, u64 policy) {
    uint4 v;
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %6, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        "@p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;}"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "l"(policy), "r"((int)inside));
    return v;
}

__device__ __forceinline__ void copy_weights(u32 to, const u16* from, bool inside, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3; cp.async.commit_group;"
                 :: "r"(to), "l"(from), "r"(inside ? 16 : 0), "l"(policy) : "memory");
}

__device__ __forceinline__ u32 shared_address(const void* of) { return (u32)__cvta_generic_to_shared(of); }

// Waits until at most `pending` copies of this thread are under way.
__device__ __forceinline__ void wait_copies(int pending) {
    if (pending >= 24) asm volatile("cp.async.wait_group 24;" ::: "memory");
    else if (pending >= 16) asm volatile("cp.async.wait_group 16;" ::: "memory");
    else if (pending >= 12) asm volatile("cp.async.wait_group 12;" ::: "memory");
    else if (pending >= 8) asm volatile("cp.async.wait_group 8;" ::: "memory");
    else if (pending >= 4) asm volatile("cp.async.wait_group 4;" ::: "memory");
    else asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// What another kernel has just written: from L2, not from a line of L1 that is older.
__device__ __forceinline__ uint4 load_input(const u16* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

// Two inputs at once: rows 0 to 7 of the first operand are one, rows 8 to 15 the other.
__device__ __forceinline__ void multiply(float (&sum)[4], u32 x0, u32 y0, u32 x1, u32 y1, u32 w0, u32 w1) {
#if HALF
#define OPERANDS "f32.f16.f16.f32"
#else
#define OPERANDS "f32.bf16.bf16.f32"
#endif
    asm("mma.sync.aligned.m16n8k16.row.col." OPERANDS " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(x0), "r"(y0), "r"(x1), "r"(y1), "r"(w0), "r"(w1));
}

// Lets the next kernel begin, and waits for the one before: it has written x.
__device__ __forceinline__ void wait_for_inputs() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
#endif

// Sums over the lanes of TILE values: lane l has that of value l TILE / 32.
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

struct Norms {
#if NORM_FLOAT
    float values[8];
#else
    uint4 values;
#endif
    __device__ __forceinline__ void load(const void* norm, int at) {
#if NORM_FLOAT
        const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(norm) + at);
        const float4 a = from[0], b = from[1];
        values[0] = a.x; values[1] = a.y; values[2] = a.z; values[3] = a.w;
        values[4] = b.x; values[5] = b.y; values[6] = b.z; values[7] = b.w;
#else
        values = *reinterpret_cast<const uint4*>(static_cast<const u16*>(norm) + at);
#endif
    }
    __device__ __forceinline__ float2 pair(int i) const {
#if NORM_FLOAT
        return make_float2(values[2 * i], values[2 * i + 1]);
#else
        return unpack(i == 0 ? values.x : i == 1 ? values.y : i == 2 ? values.z : values.w);
#endif
    }
};

__device__ __forceinline__ float squares_in(uint4 x) {
    const float2 v[4] = {unpack(x.x), unpack(x.y), unpack(x.z), unpack(x.w)};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += v[i].x * v[i].x + v[i].y * v[i].y;
    return sum;
}

// Sixteen bytes of an input, times the norm's weight. Without HEAD the squares are summed as well, and the scale is left to
// the end: but float16 cannot hold what is not scaled yet, and takes one that is known before.
__device__ __forceinline__ uint4 normalised(uint4 x, const Norms& norms, float eps, float& squares, float scale = 1) {
    float2 v[4] = {unpack(x.x), unpack(x.y), unpack(x.z), unpack(x.w)};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += v[i].x * v[i].x + v[i].y * v[i].y;
    if (HEAD) {
#pragma unroll
        for (int lanes = HEAD / 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        scale = rsqrtf(sum * (1.0f / (HEAD ? HEAD : 1)) + eps);
    }
    squares += sum;
    u32 out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 n = norms.pair(i);
        out[i] = pack(v[i].x * n.x * scale, v[i].y * n.y * scale);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// The scale that normalises input b.
__device__ __forceinline__ float scale_of(const float (&squares_of)[COLUMN_WARPS][BATCH], float eps, int b) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < COLUMN_WARPS; w++) total += squares_of[w][b];
    return rsqrtf(total * (1.0f / SIZE) + eps);
}

// A row's product with input b: all warps' shares added, scaled and gated.
__device__ __forceinline__ float product(
    const float (&sums)[COLUMN_WARPS][BATCH][TILE], const float (&squares_of)[COLUMN_WARPS][BATCH], float eps, int b, int r) {
    float y = 0, up = 0, scale = 1;
#pragma unroll
    for (int w = 0; w < COLUMN_WARPS; w++) {
        y += sums[w][b][r];
        if (SWIGLU) up += sums[w][b][OUTPUTS + r];
    }
    if (NORM && !HEAD && !SCALED_FIRST) scale = scale_of(squares_of, eps, b);
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

// The highest of the block's outputs for input b, the first among equals; ROWS lanes together.
__device__ __forceinline__ void store_best(const Arguments& a, float score, int row, int b, bool writes) {
#pragma unroll
    for (int lanes = ROWS / 2; lanes > 0; lanes /= 2) {
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
    const int first = blockIdx.x * ROWS, mine = first + strip * OUTPUTS, column = part * 256 + lane * 8;
    const u64 policy = read_once();
    auto row_of = [&](int r) { return mine + (SWIGLU && r >= OUTPUTS ? r - OUTPUTS : r); };
    auto inside = [&](int i) { return row_of(i / MINE) < a.rows && column + i % MINE * COLUMN_WARPS * 256 < SIZE; };
    auto place = [&](int i) {
        const int r = i / MINE;
        const size_t row = row_of(r) + (SWIGLU && r >= OUTPUTS ? a.rows : 0);
        return a.weight + row * SIZE + column + i % MINE * COLUMN_WARPS * 256;
    };

    uint4 held[IN_REGISTERS];
    // The shuffle keeps the base out of uniform registers: ptxas 13.0 encodes a copy with base and policy there wrongly.
    const u32 slot = __shfl_sync(0xffffffffu, shared_address(shared) + thread * 16, lane);
#pragma unroll
    for (int i = 0; i < IN_REGISTERS; i++)
        if (i < STEPS) held[i] = load_weights(place(i), inside(i), policy);
#pragma unroll
    for (int i = IN_REGISTERS; i < FILLED; i++)
        copy_weights(slot + (i - IN_REGISTERS) * THREADS * 16, place(i), inside(i), policy);
    Norms norms[NORM ? MINE : 1];
    if (NORM) {
#pragma unroll
        for (int p = 0; p < MINE; p++) {
            const int at = column + p * COLUMN_WARPS * 256;
            norms[p].load(a.norm, at < SIZE ? (HEAD ? at % (HEAD ? HEAD : 1) : at) : 0);
        }
    }
    int turn[FINISHED];  // where a sequence's ring takes the present token
    if (RING) {
#pragma unroll
        for (int f = 0; f < FINISHED; f++) {
            const int b = (f * THREADS + thread) / ROWS;
            turn[f] = b < BATCH ? b * 4 + (int)(a.lengths[b] % 4) : 0;
        }
    }
    wait_for_inputs();

    uint4 x[2 * PAIRS][MINE];
#pragma unroll
    for (int b = 0; b < 2 * PAIRS; b++)
#pragma unroll
        for (int p = 0; p < MINE; p++) {
            const int at = column + p * COLUMN_WARPS * 256;
            x[b][p] = b < BATCH && at < SIZE ? load_input(a.x + b * SIZE + at) : make_uint4(0, 0, 0, 0);
        }
    float old[FINISHED];
    if (RESIDUAL) {
#pragma unroll
        for (int f = 0; f < FINISHED; f++) {
            const int at = f * THREADS + thread, row = first + at % ROWS;
            old[f] = at < ROWS * BATCH && row < a.rows
                         ? __ldcg(static_cast<const float*>(a.out) + at / ROWS * a.rows + row)
                         : 0.0f;
        }
    }
    if (NORM) {
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            float squares = 0;
#pragma unroll
            for (int p = 0; p < MINE; p++) {
                if (SCALED_FIRST)
                    squares += squares_in(x[b][p]);
                else
                    x[b][p] = normalised(x[b][p], norms[p], a.eps, squares);
            }
            if (!HEAD) {
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
            for (int p = 0; p < MINE; p++) x[b][p] = normalised(x[b][p], norms[p], a.eps, squares, scale);
        }
    }

    float products[BATCH][TILE];
#pragma unroll
    for (int r = 0; r < TILE; r++) {
        float sum[PAIRS][4] = {};
#pragma unroll
        for (int p = 0; p < MINE; p++) {
            const int i = r * MINE + p;
            uint4 w;
            if (i >= IN_REGISTERS && i < AHEAD) {
                if (i == IN_REGISTERS || (FILLED - 1 - i) % 4 == 3)
                    wait_copies(i == IN_REGISTERS ? (FILLED - 1 - i) / 4 * 4 : FILLED - 1 - i - 3);
                w = *reinterpret_cast<uint4*>(shared + ((i - IN_REGISTERS) * THREADS + thread) * 16);
            } else {
                const int s = i < IN_REGISTERS ? i : (i - AHEAD) % IN_REGISTERS;
                w = held[s];
                const int next = i < IN_REGISTERS ? i + AHEAD : i + IN_REGISTERS;
                if (next < STEPS) held[s] = load_weights(place(next), inside(next), policy);
            }
#pragma unroll
            for (int q = 0; q < PAIRS; q++) {
                const uint4 u = x[2 * q][p], v = x[2 * q + 1][p];
                multiply(sum[q], u.x, v.x, u.y, v.y, w.x, w.y);
                multiply(sum[q], u.z, v.z, u.w, v.w, w.z, w.w);
            }
        }
        const bool diagonal = lane % 4 == lane / 8, second = lane / 4 % 2;
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const float* d = sum[b / 2] + b % 2 * 2;
            products[b][r] = diagonal ? (second ? d[1] : d[0]) : 0.0f;
        }
    }
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
        const float y = summed(products[b], lane);
        if (lane % (32 / TILE) == 0) sums[strip][part][b][lane * TILE / 32] = y;
    }
    __syncthreads();

#pragma unroll
    for (int f = 0; f < FINISHED; f++) {
        const int at = f * THREADS + thread, b = at / ROWS, r = at % ROWS, row = first + r, from = r / OUTPUTS;
        const bool finished = at < ROWS * BATCH && row < a.rows;
        float y = 0;
        if (finished) {
            y = product(sums[from], squares_of[from], a.eps, b, r % OUTPUTS);
            if (RESIDUAL) y += old[f];
            store(a, y, b, row, RING ? turn[f] : 0);
        }
        if (BEST) store_best(a, finished ? y : -__int_as_float(0x7f800000), row, b, r == 0 && at < ROWS * BATCH);
    }
}
