// A GPU's block on this machine's processor: the kernels' own source runs, and sanitizers can watch it.
//
// A CUDA thread is a std::thread and __syncthreads a barrier of the system (threads.hpp). With -DMDMF_FIBERS both are a few
// instructions in one thread, ten times as fast but blind to races (fibers.hpp). __shared__ memory is static, because
// one block runs at a time. Dynamic shared memory is a heap block of exactly the requested size, filled with NaN.
// Asynchronous copies happen at once or as late as allowed (`late`), since either may hide a fault the other shows.
// Included before a kernel's source: g++ -std=c++20 -include host.hpp -x c++ 2_tiled.cu
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define MDMF_DYNAMIC_SHARED(name) unsigned char* const name = host::shared

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
// Signed, unlike CUDA's: kernels may compare them with int, and warnings stay on.
struct Place {
    int x = 0, y = 0, z = 0;
};

using std::max;
using std::min;

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

inline Place blockIdx, gridDim, blockDim;

namespace host {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 640;
constexpr int POST = 128;  // bytes that a lane can show the others of its warp

inline unsigned char* shared = nullptr;
inline bool late = false;
inline int fault = 0;  // which planted fault is on (test_sanitizers.py), or none

struct Copy {
    void* to;
    const void* from;
};

// The private state of a CUDA thread.
struct Thread {
    int turn = 0;                           // which of the warp's two places it posts to next
    std::vector<std::vector<Copy>> groups;  // closed, oldest first
    std::vector<Copy> open;
    std::vector<std::vector<std::function<void()>>> brackets;  // of a warpgroup's products, oldest first
    std::vector<std::function<void()>> products;               // started, and not in a bracket yet
};

}  // namespace host

// Both define threadIdx, host::self() (the calling CUDA thread), host::Meeting (a barrier) and host::Team. Its
// run(block, body) runs the body as `block` CUDA threads, and rest() ends the threads it keeps.
#ifdef MDMF_FIBERS
#include "fibers.hpp"
#else
#include "threads.hpp"
#endif

namespace host {

// The posts of warp-wide operations. Two places, so that the next may begin while slow lanes still read the last one.
struct Warp {
    Meeting meet{WARP};
    alignas(16) unsigned char posted[2][WARP][POST] = {};
};

struct Machine {
    Team team;
    Warp warps[MOST_THREADS / WARP];
    std::unique_ptr<Meeting> meet;

    // Run `body` once for every thread of every block, blocks in order or backwards.
    void run(dim3 grid, int block, std::size_t bytes, bool backwards, const std::function<void()>& body) {
        meet = std::make_unique<Meeting>(block);
        gridDim = {int(grid.x), int(grid.y), int(grid.z)};
        blockDim = {block, 1, 1};
        const int blocks = gridDim.x * gridDim.y;
        for (int i = 0; i < blocks; ++i) {
            const int at = backwards ? blocks - 1 - i : i;
            blockIdx = {at % gridDim.x, at / gridDim.x, 0};
            // Aligned as step 4 asks.
            shared = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t(1024)));
            std::memset(shared, 0xff, bytes);
            team.run(block, body);
            ::operator delete(shared, std::align_val_t(1024));
        }
    }
};
inline Machine machine;

// All lanes' posts of one operation.
template <typename T> struct Posts {
    const unsigned char (*places)[POST];
    const T& operator[](int lane) const { return *reinterpret_cast<const T*>(places[lane]); }
};

// Post a copy of `mine`, wait for the warp and return all lanes' copies, which stay valid until the lane's call after
// the next.
template <typename T> Posts<T> exchange(const T& mine) {
    static_assert(sizeof(T) <= POST);
    Warp& warp = machine.warps[threadIdx.x / WARP];
    auto& places = warp.posted[self().turn];
    self().turn ^= 1;
    new (places[threadIdx.x % WARP]) T(mine);
    warp.meet.arrive_and_wait();
    return {places};
}

}  // namespace host

inline void __syncthreads() { host::machine.meet->arrive_and_wait(); }

inline void copy_async(void* to, const void* from) {
    if (host::late) {
        host::self().open.push_back({to, from});
    } else {
        *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
    }
}

inline void commit_copies() {
    host::self().groups.push_back(std::move(host::self().open));
    host::self().open.clear();
}

template <int PENDING> void wait_copies() {
    auto& groups = host::self().groups;
    while (int(groups.size()) > PENDING) {
        for (const auto& [to, from] : groups.front()) *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
        groups.erase(groups.begin());
    }
}

inline unsigned short half_bits(float value) {
    auto bits = std::bit_cast<unsigned short>(static_cast<_Float16>(value));
    // Otherwise GCC 12 leaves out the rounding of four numbers that it turns into a vector and back.
    asm("" : "+r"(bits));
    return bits;
}
inline float half_value(unsigned short bits) {
    auto value = std::bit_cast<unsigned>(static_cast<float>(std::bit_cast<_Float16>(bits)));
    // Otherwise GCC turns a half into a double by a call that takes ten times as long as two instructions.
    asm("" : "+r"(value));
    return __uint_as_float(value);
}

// The nearest float32, and 0 below the normal numbers, like ex2.approx.ftz (which may be 2 ulp off).
inline float exp2_special(float x) {
    const float value = std::exp2(x);
    return value < 0x1p-126f ? 0.0f : value;
}

#include "fragments.hpp"
#include "hopper_host.hpp"
