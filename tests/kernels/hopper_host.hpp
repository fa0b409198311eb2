// What engines/kernels/hopper.cuh takes from a GPU, for the host build: barriers in shared memory, bulk copies, and
// products of a warpgroup with the layouts of the PTX ISA.
//
// With `late`, copies and products happen only when they are waited for, and sums are NaN until then.
#pragma once

#include <map>
#include <mutex>

#define MDMF_ALIGNED_SHARED(name) unsigned char* const name = host::shared

namespace host {

// An mbarrier. Its phase ends when all arrivals and all announced bytes are there.
// Each barrier has its own lock. A common one would order threads that nothing orders on a GPU, and hide their races.
struct PhaseBarrier : Monitor {
    int expected = 0, missing = 0, phase = 0;
    long bytes = 0;
    struct Bulk {
        void* to;
        const void* from;
        int bytes;
    };
    std::vector<Bulk> late;

    void check() {
        if (missing != 0) return;
        for (const Bulk& copy : late) {
            std::memcpy(copy.to, copy.from, copy.bytes);
            bytes -= copy.bytes;
        }
        late.clear();
        if (bytes != 0) return;
        missing = expected;
        ++phase;
        wake_all();
    }
};
// Entries are made before threads meet, and only read afterwards.
inline std::map<const void*, PhaseBarrier> barriers;

// The 16 k of A that a lane and its three neighbours hold, and where the other operand lies.
struct Product {
    float* sums;
    int count;
    unsigned a[4][4];
    unsigned points;
    bool add;
};

// Numbers 0 to 15 of row `row` of a described operand, in words of 8.
inline void described_numbers(unsigned described, int row, double (&numbers)[16]) {
    for (int word = 0; word < 2; ++word) {
        unsigned place = described * 16 + row * 128 + word * 16;
        place ^= (place >> 7 & 7) << 4;
        unsigned two[4];
        std::memcpy(two, shared + place, 16);
        for (int k = 0; k < 8; ++k) numbers[word * 8 + k] = half_number(two[k / 2], k % 2);
    }
}

inline void compute(const Product& product) {
    const int lane = threadIdx.x % WARP;
    double left[2][16], right[16];
    for (int i = 0; i < 2; ++i)
        for (int k = 0; k < 16; ++k) left[i][k] = half_number(product.a[k % 8 / 2][k / 8 * 2 + i], k % 2);
    // Of each four sums, two rows have the same two points.
    for (int at = 0; at < product.count; at += at % 2 == 0 ? 1 : 3) {
        described_numbers(product.points, at / 4 * 8 + lane % 4 * 2 + at % 2, right);
        for (int i = 0; i < 2; ++i) {
            float& sum = product.sums[at + 2 * i];
            double exact = product.add ? sum : 0.0;
            for (int k = 0; k < 16; ++k) exact += left[i][k] * right[k];
            sum = towards_zero(exact);
        }
    }
}

inline void start_product(const Product& product) {
    if (!late) return compute(product);
    self().products.push_back([product] { compute(product); });
    // Sums that nothing waited for are of no use.
    if (!product.add) std::fill(product.sums, product.sums + product.count, __uint_as_float(0x7fc00000u));
}

}  // namespace host

inline void init_barrier(unsigned long long* barrier, int count) {
    host::PhaseBarrier& own = host::barriers[barrier];
    own.expected = own.missing = count;
    own.phase = 0;
    own.bytes = 0;
    own.late.clear();
}
inline void publish_barriers() {}

inline void arrive(unsigned long long* barrier) {
    host::PhaseBarrier& own = host::barriers.at(barrier);
    const std::lock_guard held(own.lock);
    --own.missing;
    own.check();
}

inline void arrive_and_expect(unsigned long long* barrier, int bytes) {
    host::PhaseBarrier& own = host::barriers.at(barrier);
    const std::lock_guard held(own.lock);
    --own.missing;
    own.bytes += bytes;
    own.check();
}

inline void copy_bulk(void* to, const void* from, int bytes, unsigned long long* barrier) {
    host::PhaseBarrier& own = host::barriers.at(barrier);
    const std::lock_guard held(own.lock);
    if (bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) std::abort();
    if (host::late) {
        own.late.push_back({to, from, bytes});
        own.wake_all();
        return;
    }
    std::memcpy(to, from, bytes);
    own.bytes -= bytes;
    own.check();
}

inline void wait(unsigned long long* barrier, int parity) {
    host::PhaseBarrier& own = host::barriers.at(barrier);
    std::unique_lock held(own.lock);
    const auto ended = [&] {
        if (!own.late.empty()) own.check();
        return own.phase % 2 != parity;
    };
    if (own.sleep_until(held, ended)) return;
    std::fputs("a thread waits for a barrier whose phase does not end\n", stderr);
    std::abort();
}

template <int REGISTERS> void keep_registers() {}
template <int REGISTERS> void take_registers() {}
inline int uniform(int value) { return host::exchange(value)[0]; }
inline void meet_warp() { host::exchange(0); }
inline bool any_lane(bool value) {
    const host::Posts<bool> lanes = host::exchange(value);
    bool any = false;
    for (int lane = 0; lane < host::WARP; ++lane) any |= lanes[lane];
    return any;
}

inline unsigned describe(const void* points) {
    const auto place = static_cast<const unsigned char*>(points) - host::shared;
    if (place % 1024 != 0) std::abort();
    return static_cast<unsigned>(place) / 16;
}

inline void begin_products() {}
inline void end_products() {
    host::Thread& own = host::self();
    own.brackets.push_back(std::move(own.products));
    own.products.clear();
}

template <int COUNT> void multiply(float (&sums)[COUNT], const unsigned (&a)[4], unsigned points, int add) {
    host::Product product{sums, COUNT, {}, points, add != 0};
    struct Words {
        unsigned a[4];
    } mine;
    std::memcpy(mine.a, a, sizeof a);
    const host::Posts<Words> lanes = host::exchange(mine);
    const int first = threadIdx.x % host::WARP / 4 * 4;
    for (int i = 0; i < 4; ++i) std::memcpy(product.a[i], lanes[first + i].a, sizeof a);
    host::start_product(product);
}

template <int LEFT> void wait_products() {
    auto& brackets = host::self().brackets;
    while (int(brackets.size()) > LEFT) {
        for (const auto& compute : brackets.front()) compute();
        brackets.erase(brackets.begin());
    }
}

template <int COUNT> void settle(float (&)[COUNT]) {}
