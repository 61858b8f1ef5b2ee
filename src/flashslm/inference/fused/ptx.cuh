// What projection.cu needs of PTX: conversions of packed pairs, loads with cache hints, asynchronous copies to shared
// memory, the tensor core's product, programmatic dependent launch. HALF selects float16 instead of bfloat16.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

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

// Both products, and the larger absolute values, of two packed pairs.
#if HALF
#define PAIR "f16x2"
#else
#define PAIR "bf16x2"
#endif
__device__ __forceinline__ u32 product_of_pairs(u32 a, u32 b) {
    u32 pair;
    asm("mul.rn." PAIR " %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}

__device__ __forceinline__ u32 larger_of_pairs(u32 a, u32 b) {
    u32 pair;
    asm("{.reg .b32 u, v; abs." PAIR " u, %1; abs." PAIR " v, %2; max." PAIR " %0, u, v;}" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}

// An L2 policy for weights, which are read once per step: the cache is for what is read again.
__device__ __forceinline__ u64 read_once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ uint4 load_weights(const void* from, bool inside, u64 policy) {
    uint4 v;
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %6, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        "@p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;}"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "l"(policy), "r"((int)inside));
    return v;
}

__device__ __forceinline__ void copy_weights(u32 to, const void* from, bool inside, u64 policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3; cp.async.commit_group;"
                 :: "r"(to), "l"(from), "r"(inside ? 16 : 0), "l"(policy) : "memory");
}

__device__ __forceinline__ u32 shared_address(const void* of) { return (u32)__cvta_generic_to_shared(of); }

// Wait until at most `pending` copies of this thread are in flight.
__device__ __forceinline__ void wait_copies(int pending) {
    if (pending >= 24) asm volatile("cp.async.wait_group 24;" ::: "memory");
    else if (pending >= 16) asm volatile("cp.async.wait_group 16;" ::: "memory");
    else if (pending >= 12) asm volatile("cp.async.wait_group 12;" ::: "memory");
    else if (pending >= 8) asm volatile("cp.async.wait_group 8;" ::: "memory");
    else if (pending >= 4) asm volatile("cp.async.wait_group 4;" ::: "memory");
    else asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// Load what another kernel has just written: from L2, since a line of L1 may be older.
__device__ __forceinline__ uint4 load_input(const u16* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

// Two inputs x and y at once: rows 0 to 7 of the first operand are x, rows 8 to 15 are y.
__device__ __forceinline__ void multiply(float (&sum)[4], u32 x0, u32 y0, u32 x1, u32 y1, u32 w0, u32 w1) {
#if HALF
#define OPERANDS "f32.f16.f16.f32"
#else
#define OPERANDS "f32.bf16.bf16.f32"
#endif
    asm("mma.sync.aligned.m16n8k16.row.col." OPERANDS " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]) : "r"(x0), "r"(y0), "r"(x1), "r"(y1), "r"(w0), "r"(w1));
}

// The same of signed bytes, twice as many.
__device__ __forceinline__ void multiply(int (&sum)[4], u32 x0, u32 y0, u32 x1, u32 y1, u32 w0, u32 w1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3]) : "r"(x0), "r"(y0), "r"(x1), "r"(y1), "r"(w0), "r"(w1));
}

// Let the next kernel begin, then wait for the previous one, which writes x.
__device__ __forceinline__ void wait_for_inputs() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
