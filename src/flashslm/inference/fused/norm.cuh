// The norm in front of a product (projection.cu): of each lane's part of the inputs.
#pragma once

// Two values at once, as exact as one by one. Only with INT8, where its effect on the time was measured.
#define PACKED_NORM (INT8 && NORM && !NORM_FLOAT && !HEAD_DIM && !HALF)

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

__device__ __forceinline__ uint4 times(uint4 x, const Norms& norms, float scale) {
    const float2 v[4] = {unpack(x.x), unpack(x.y), unpack(x.z), unpack(x.w)};
    u32 out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 n = norms.pair(i);
        out[i] = pack(v[i].x * n.x * scale, v[i].y * n.y * scale);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

// A lane's part of an input times the norm's weight. Without HEAD_DIM the squares are summed as well, and the epilogue
// scales; float16 cannot hold values that are not scaled yet, so there the scale is known before (SCALED_FIRST).
__device__ __forceinline__ void normalise(
    uint4 (&x)[VECTORS], const Norms (&norms)[VECTORS], float eps, float& squares, float scale = 1) {
    float sum = 0;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) sum += squares_in(x[v]);
    if (HEAD_DIM) {
#pragma unroll
        for (int lanes = HEAD_DIM / (2 * VALUES); lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        scale = rsqrtf(sum * (1.0f / (HEAD_DIM ? HEAD_DIM : 1)) + eps);
    }
    squares += sum;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) x[v] = times(x[v], norms[v], scale);
}

#if PACKED_NORM
// The same of all of a lane's tiles, the squares by the tensor core: returns a part of their sum over the warp.
__device__ __forceinline__ float normalise_packed(
    uint4 (&x)[K_TILES_PER_WARP][VECTORS], const Norms (&norms)[K_TILES_PER_WARP][VECTORS], int lane) {
    float sums[2][4] = {};
#pragma unroll
    for (int p = 0; p < K_TILES_PER_WARP; p++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            uint4& u = x[p][v];
            const uint4 n = norms[p][v].values;
            multiply(sums[0], u.x, 0, u.y, 0, u.x, u.y);
            multiply(sums[1], u.z, 0, u.w, 0, u.z, u.w);
            u = make_uint4(product_of_pairs(u.x, n.x), product_of_pairs(u.y, n.y), product_of_pairs(u.z, n.z),
                           product_of_pairs(u.w, n.w));
        }
    return diagonal(sums[0], lane) + diagonal(sums[1], lane);
}
#endif
