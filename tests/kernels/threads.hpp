// CUDA threads as std::threads, reused from block to block.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <semaphore>
#include <thread>

inline thread_local Place threadIdx;

namespace host {

// The system's barrier. ThreadSanitizer knows it, and std::barrier costs it twice the time.
class Meeting {
  public:
    explicit Meeting(int expected) { pthread_barrier_init(&barrier, nullptr, unsigned(expected)); }
    Meeting(const Meeting&) = delete;
    ~Meeting() { pthread_barrier_destroy(&barrier); }
    void arrive_and_wait() { pthread_barrier_wait(&barrier); }

  private:
    pthread_barrier_t barrier;
};

inline thread_local Thread own;
inline Thread& self() { return own; }

// A lock, and sleep until what it guards has changed.
struct Monitor {
    std::mutex lock;
    std::condition_variable changed;

    void wake_all() { changed.notify_all(); }

    // Sleep, without the lock, until others have made `met` true and woken all. Returns false if that takes too long.
    template <typename Condition> bool sleep_until(std::unique_lock<std::mutex>& held, const Condition& met) {
        // By the system's clock: some versions of ThreadSanitizer do not see waits by the steady one.
        return changed.wait_until(held, std::chrono::system_clock::now() + std::chrono::seconds(90), met);
    }
};

class Team {
  public:
    ~Team() { rest(); }

    void run(int block, const std::function<void()>& body) {
        while (int(members.size()) < block) members.push_back(std::make_unique<Member>(*this, int(members.size())));
        work = &body;
        for (int i = 0; i < block; ++i) members[i]->start.release();
        for (int i = 0; i < block; ++i) members[i]->done.acquire();
    }

    void rest() {
        work = nullptr;
        for (auto& member : members) member->start.release();
        members.clear();
    }

  private:
    struct Member {
        Member(const Team& team, int index)
            : thread([this, &team, index] {
                  threadIdx.x = index;
                  for (start.acquire(); team.work; start.acquire()) {
                      own = Thread{};
                      (*team.work)();
                      done.release();
                  }
              }) {}
        std::binary_semaphore start{0}, done{0};
        std::jthread thread;
    };
    const std::function<void()>* work = nullptr;
    std::vector<std::unique_ptr<Member>> members;
};

}  // namespace host
