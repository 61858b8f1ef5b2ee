// Inputs as whole numbers of 16 bits, which meet weights of 8 bits as two signed bytes each (projection.cu).
#pragma once

constexpr float MOST = 127 * 256;  // of 16 bits in two signed bytes

// Four values as whole numbers: their high and their low bytes, both signed. Added to 1.5 * 2^23 a number has its whole part
// in its last bits; with 128 more the low byte of that, less 128, is what the high byte, rounded down, leaves.
__device__ __forceinline__ void split_bytes(u32 first, u32 second, float scale, u32& high, u32& low) {
    constexpr float WHOLE = 12582912.0f + 128.0f;
    const float2 v = unpack(first), w = unpack(second);
    const u32 a = __float_as_uint(fmaf(v.x, scale, WHOLE)), b = __float_as_uint(fmaf(v.y, scale, WHOLE));
    const u32 c = __float_as_uint(fmaf(w.x, scale, WHOLE)), d = __float_as_uint(fmaf(w.y, scale, WHOLE));
    const u32 ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    high = __byte_perm(ab, cd, 0x7632);
    low = __byte_perm(ab, cd, 0x5410) ^ 0x80808080u;
}

// Replace a lane's inputs by their high bytes and their low bytes. Returns what a unit of the low bytes is worth.
template <int TILES>
__device__ __forceinline__ float quantise(uint4 (&x)[TILES][2]) {
    u32 pair = 0;
#pragma unroll
    for (int p = 0; p < TILES; p++)
#pragma unroll
        for (int v = 0; v < 2; v++)
            pair = larger_of_pairs(
                pair, larger_of_pairs(larger_of_pairs(x[p][v].x, x[p][v].y), larger_of_pairs(x[p][v].z, x[p][v].w)));
    float highest = fmaxf(fmaxf(unpack(pair).x, unpack(pair).y), 1e-30f);
#pragma unroll
    for (int lanes = 2; lanes > 0; lanes /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lanes));
    const float scale = __fdividef(MOST, highest);
#pragma unroll
    for (int p = 0; p < TILES; p++) {
        const uint4 u = x[p][0], v = x[p][1];
        split_bytes(u.x, u.y, scale, x[p][0].x, x[p][1].x);
        split_bytes(u.z, u.w, scale, x[p][0].y, x[p][1].y);
        split_bytes(v.x, v.y, scale, x[p][0].z, x[p][1].z);
        split_bytes(v.z, v.w, scale, x[p][0].w, x[p][1].w);
    }
    return highest * (1.0f / MOST);
}
