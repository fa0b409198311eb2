// CUDA threads as fibers of one thread. Each runs until it has to wait for others.
//
// A fiber begins by setcontext and continues by longjmp, which, unlike swapcontext, makes no system call.
#pragma once

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <ucontext.h>

inline Place threadIdx;

namespace host {

struct Meeting {
    explicit Meeting(int expected) : expected(expected) {}
    void arrive_and_wait();
    int expected, arrived = 0, round = 0;
};

struct Fiber {
    static constexpr std::size_t STACK = 1 << 18;
    Thread own;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
    ucontext_t begin;
    std::jmp_buf place;
    const Meeting* waits = nullptr;
    int round = 0;  // of the meeting it waits for
    bool begun = false, done = false;
};
inline Fiber* current = nullptr;
inline std::jmp_buf scheduler;
inline const std::function<void()>* work = nullptr;

inline Thread& self() { return current->own; }

inline void Meeting::arrive_and_wait() {
    if (++arrived == expected) {
        arrived = 0;
        ++round;
        return;
    }
    current->waits = this;
    current->round = round;
    if (_setjmp(current->place) == 0) std::longjmp(scheduler, 1);
}

// A lock, and sleep until what it guards has changed. Only one fiber runs at a time, so nothing has to be locked.
struct Monitor {
    struct Lock {
        void lock() {}
        void unlock() {}
    } lock;

    void wake_all() {}

    // Let others run until they have made `met` true. Returns false if that takes too long.
    template <typename Condition> bool sleep_until(std::unique_lock<Lock>&, const Condition& met) {
        for (int tries = 0; tries < 50'000'000; ++tries) {
            if (met()) return true;
            current->waits = nullptr;
            if (_setjmp(current->place) == 0) std::longjmp(scheduler, 1);
        }
        return false;
    }
};

class Team {
  public:
    void run(int block, const std::function<void()>& body) {
        while (int(fibers.size()) < block) fibers.push_back(std::make_unique<Fiber>());
        work = &body;
        for (int i = 0; i < block; ++i) begin(*fibers[i]);
        for (int left = block; left > 0;) {
            bool moved = false;
            for (int i = 0; i < block; ++i) {
                Fiber& fiber = *fibers[i];
                if (fiber.done || (fiber.waits && fiber.round == fiber.waits->round)) continue;
                threadIdx = {i, 0, 0};
                resume(fiber);
                moved = true;
                left -= fiber.done;
            }
            if (!moved) {
                std::fputs("some threads wait for others that have ended\n", stderr);
                std::abort();
            }
        }
    }

    void rest() { fibers.clear(); }

  private:
    static void begin(Fiber& fiber) {
        fiber.own = Thread{};
        fiber.waits = nullptr;
        fiber.begun = fiber.done = false;
        getcontext(&fiber.begin);
        fiber.begin.uc_stack.ss_sp = fiber.stack.get();
        fiber.begin.uc_stack.ss_size = Fiber::STACK;
        makecontext(&fiber.begin, body, 0);
    }

    static void body() {
        (*work)();
        current->done = true;
        std::longjmp(scheduler, 1);
    }

    __attribute__((noinline)) static void resume(Fiber& fiber) {
        current = &fiber;
        if (_setjmp(scheduler) != 0) return;
        if (fiber.begun) std::longjmp(fiber.place, 1);
        fiber.begun = true;
        setcontext(&fiber.begin);
    }

    std::vector<std::unique_ptr<Fiber>> fibers;
};

}  // namespace host
