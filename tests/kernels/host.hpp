// A GPU's block as threads of this process, so that the kernels' own source runs, and sanitizers see it.
//
// A CUDA thread is a std::thread kept from block to block, __syncthreads a std::barrier, __shared__ memory static (one
// block runs at a time).  Warp-wide operations pass through a place in memory and a barrier of the warp.  Dynamic shared
// memory is a heap block of exactly the size asked for, filled with NaN; asynchronous copies happen at once or as late
// as allowed (`late`), since either may hide a mistake that the other shows.
// Included before a kernel's source: g++ -std=c++20 -include host.hpp -x c++ 2_tiled.cu
#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <semaphore>
#include <thread>
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
// Signed, where CUDA's are unsigned: kernels may compare them with int and warnings stay on.
struct Place {
    int x = 0, y = 0, z = 0;
};

using std::max;
using std::min;

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

inline thread_local Place threadIdx;
inline Place blockIdx, gridDim, blockDim;

namespace host {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 256;

inline unsigned char* shared = nullptr;
inline bool late = false;

// One lane's part of a warp-wide operation: two of them, so that the next may begin while slow lanes still read the last.
struct Warp {
    std::barrier<> meet{WARP};
    alignas(16) unsigned char posted[2][WARP][64] = {};
};

struct Copy {
    void* to;
    const void* from;
};

struct Thread {
    int turn = 0;                            // which of a warp's two places is next
    std::vector<std::vector<Copy>> groups;   // closed, oldest first
    std::vector<Copy> open;
};
inline thread_local Thread self;

class Machine {
  public:
    ~Machine() { rest(); }

    // End all threads; the next run begins new ones.
    void rest() {
        kernel = nullptr;
        for (auto& worker : workers) worker->start.release();
        workers.clear();
    }

    // Run `body` once for every thread of every block, blocks in order, or from the last on.
    void run(dim3 grid, int block, std::size_t bytes, bool backwards, std::function<void()> body) {
        while (int(workers.size()) < block) workers.push_back(std::make_unique<Worker>(*this, int(workers.size())));
        kernel = std::move(body);
        std::barrier<> all(block);
        meet = &all;
        gridDim = {int(grid.x), int(grid.y), int(grid.z)};
        blockDim = {block, 1, 1};
        const int blocks = gridDim.x * gridDim.y;
        for (int i = 0; i < blocks; ++i) {
            const int at = backwards ? blocks - 1 - i : i;
            blockIdx = {at % gridDim.x, at / gridDim.x, 0};
            std::unique_ptr<unsigned char[]> memory(new (std::align_val_t(16)) unsigned char[std::max<std::size_t>(bytes, 1)]);
            std::memset(memory.get(), 0xff, bytes);
            shared = memory.get();
            for (int j = 0; j < block; ++j) workers[j]->start.release();
            for (int j = 0; j < block; ++j) workers[j]->done.acquire();
        }
    }

    std::function<void()> kernel;
    std::barrier<>* meet = nullptr;
    Warp warps[MOST_THREADS / WARP];

  private:
    struct Worker {
        Worker(Machine& machine, int index)
            : thread([this, &machine, index] {
                  threadIdx.x = index;
                  for (start.acquire(); machine.kernel; start.acquire()) {
                      self.groups.clear();
                      self.open.clear();
                      machine.kernel();
                      done.release();
                  }
              }) {}
        std::binary_semaphore start{0}, done{0};
        std::jthread thread;
    };
    std::vector<std::unique_ptr<Worker>> workers;
};
inline Machine machine;

// All lanes' posts of one operation.
template <typename T> struct Posts {
    const unsigned char (*places)[64];
    const T& operator[](int lane) const { return *reinterpret_cast<const T*>(places[lane]); }
};

// Post a copy of `mine`, wait for the warp, and return all lanes' copies; they stay until the lane's next call but one.
template <typename T> Posts<T> exchange(const T& mine) {
    static_assert(sizeof(T) <= 64);
    Warp& warp = machine.warps[threadIdx.x / WARP];
    auto& places = warp.posted[self.turn];
    self.turn ^= 1;
    new (places[threadIdx.x % WARP]) T(mine);
    warp.meet.arrive_and_wait();
    return {places};
}

}  // namespace host

inline void __syncthreads() { host::machine.meet->arrive_and_wait(); }

inline void copy_async(void* to, const void* from) {
    if (host::late) {
        host::self.open.push_back({to, from});
    } else {
        *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
    }
}

inline void commit_copies() {
    host::self.groups.push_back(std::move(host::self.open));
    host::self.open.clear();
}

template <int PENDING> void wait_copies() {
    auto& groups = host::self.groups;
    while (int(groups.size()) > PENDING) {
        for (const host::Copy& copy : groups.front()) *static_cast<uint4*>(copy.to) = *static_cast<const uint4*>(copy.from);
        groups.erase(groups.begin());
    }
}

inline unsigned short half_bits(float value) { return std::bit_cast<unsigned short>(static_cast<_Float16>(value)); }
inline float half_value(unsigned short bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

// The nearest float32, and 0 below the normal numbers, as ex2.approx.ftz has it (which may be 2 ulp off).
inline float exp2_special(float x) {
    const float value = std::exp2(x);
    return value < 0x1p-126f ? 0.0f : value;
}

inline void recompute(unsigned&) {}

#include "fragments.hpp"
