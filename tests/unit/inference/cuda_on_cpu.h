// A block of a CUDA kernel on a CPU: a thread a lane, and what projection.cu asks of the hardware in C++.
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Index { int x; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __int_as_float(int bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline uint32_t __float_as_uint(float v) { uint32_t bits; std::memcpy(&bits, &v, 4); return bits; }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selected) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) result |= (uint32_t)(bytes >> 8 * (selected >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline float __ldcg(const float* from) { return *from; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }

struct Warp {
    std::barrier<> together{32};
    uint32_t values[32][6];
};
inline thread_local Index threadIdx, blockIdx, gridDim;
inline thread_local Warp* warp_of_thread;
inline std::barrier<>* block_together;
inline void __syncthreads() { block_together->arrive_and_wait(); }

template <class T>
T from_lane(T value, int lane) {
    Warp& warp = *warp_of_thread;
    std::memcpy(warp.values[threadIdx.x % 32], &value, 4);
    warp.together.arrive_and_wait();
    std::memcpy(&value, warp.values[lane], 4);
    warp.together.arrive_and_wait();
    return value;
}
template <class T>
T __shfl_sync(uint32_t, T value, int lane) { return from_lane(value, lane); }
template <class T>
T __shfl_xor_sync(uint32_t, T value, int lanes) { return from_lane(value, (threadIdx.x % 32) ^ lanes); }

#if HALF
inline float widened(uint32_t bits) {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return v;
}
inline uint32_t rounded(float wide) {
    const _Float16 v = wide;
    uint16_t bits;
    std::memcpy(&bits, &v, 2);
    return bits;
}
#else  // bfloat16, rounded to the nearest even
inline float widened(uint32_t bits) { return __int_as_float(bits << 16); }
inline uint32_t rounded(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
inline float2 unpack(uint32_t pair) { return {widened(pair & 0xffff), widened(pair >> 16)}; }
inline uint32_t pack(float low, float high) { return rounded(low) | rounded(high) << 16; }

inline uint32_t product_of_pairs(uint32_t a, uint32_t b) {
    return pack(unpack(a).x * unpack(b).x, unpack(a).y * unpack(b).y);
}
inline uint32_t larger_of_pairs(uint32_t a, uint32_t b) {
    const float2 u = unpack(a), v = unpack(b);
    return pack(std::max(std::fabs(u.x), std::fabs(v.x)), std::max(std::fabs(u.y), std::fabs(v.y)));
}

inline uint64_t read_once() { return 0; }
inline uint4 load_weights(const void* from, bool inside, uint64_t) {
    return inside ? *static_cast<const uint4*>(from) : uint4{};
}
inline uint4 load_input(const uint16_t* from) { return *reinterpret_cast<const uint4*>(from); }

// Copies land only when they are waited for.
struct Copy { void* to; const void* from; };
inline thread_local std::deque<Copy> copies;
alignas(128) inline unsigned char shared[227 * 1024];
inline uint32_t shared_address(const unsigned char* of) { return of - shared; }
inline void copy_weights(uint32_t to, const void* from, bool inside, uint64_t) {
    copies.push_back({shared + to, inside ? from : nullptr});
}
inline void wait_copies(int pending) {
    for (; (int)copies.size() > pending; copies.pop_front()) {
        const Copy& c = copies.front();
        c.from ? (void)std::memcpy(c.to, c.from, 16) : (void)std::memset(c.to, 0, 16);
    }
}

// What the kernel before writes is there only when all threads have waited for it.
inline std::function<void()> write_inputs;
inline void wait_for_inputs() {
    __syncthreads();
    if (threadIdx.x == 0 && write_inputs) write_inputs(), write_inputs = nullptr;
    __syncthreads();
}

inline float times(uint32_t a, uint32_t b, float) {  // pairs
    return unpack(a).x * unpack(b).x + unpack(a).y * unpack(b).y;
}
inline int times(uint32_t a, uint32_t b, int) {  // four signed bytes
    int total = 0;
    for (int shift = 0; shift < 32; shift += 8) total += (int)(int8_t)(a >> shift) * (int8_t)(b >> shift);
    return total;
}

// m16n8k16, or m16n8k32 of bytes: a lane's operands and sums as PTX lays them out.
template <class Sum>
void multiply(Sum (&sum)[4], uint32_t x0, uint32_t y0, uint32_t x1, uint32_t y1, uint32_t w0, uint32_t w1) {
    Warp& warp = *warp_of_thread;
    const int lane = threadIdx.x % 32;
    const uint32_t mine[6] = {x0, y0, x1, y1, w0, w1};
    std::memcpy(warp.values[lane], mine, sizeof mine);
    warp.together.arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++) {  // of words of 32 bits
            const uint32_t a = warp.values[row * 4 + k % 4][k / 4 * 2 + i / 2], b = warp.values[column * 4 + k % 4][4 + k / 4];
            sum[i] += times(a, b, sum[i]);
        }
    }
    warp.together.arrive_and_wait();
}

template <class Kernel, class Arguments>
void run_blocks(Kernel kernel, const Arguments& arguments, int blocks, int threads) {
    for (int block = 0; block < blocks; block++) {
        std::barrier<> together(threads);
        block_together = &together;
        std::vector<std::unique_ptr<Warp>> warps(threads / 32);
        for (auto& warp : warps) warp = std::make_unique<Warp>();
        std::vector<std::thread> lanes;
        for (int t = 0; t < threads; t++)
            lanes.emplace_back([&, t] {
                threadIdx.x = t, blockIdx.x = block, gridDim.x = blocks, warp_of_thread = warps[t / 32].get();
                kernel(arguments);
            });
        for (auto& lane : lanes) lane.join();
    }
}
