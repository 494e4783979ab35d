// Threads that help with a call, for as long as there is something left to take.
//
// The caller never waits for a thread that has not begun: it works through the tasks itself and waits for those only that
// a helper has taken. A barrier, as in OpenMP, waits for every thread to arrive; on a machine whose cores are busy that
// took two slices of the scheduler for each product (8 ms for 0.6 ms of work). Between calls helpers look out for the next
// one a while, giving way to others, and then sleep.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>

namespace helpers {

typedef void (*Task)(const void *work, int64_t i);

const int MOST = 256;          // helpers of a process
const int PAUSES = 2000;       // looks at the next call before giving way; some 20 us
const int64_t AWAKE_US = 300;  // from one call to the next within a pass; after it helpers sleep

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

class Pool {
  public:
    // Runs work(i) for i in [0, count), each once, on the caller and up to threads - 1 helpers. wake: whether it is large
    // enough for helpers that sleep.
    void run(int64_t count, int threads, bool wake, Task task, const void *work) {
        bool mine = threads > 1 && count > 1 && count < LIMIT && !busy.exchange(true, std::memory_order_acquire);
        if (!mine) {  // one call at a time has the helpers
            for (int64_t i = 0; i < count; i++) task(work, i);
            return;
        }
        while (started < threads - 1 && started < MOST && start()) started++;
        most.store(threads - 1, std::memory_order_relaxed);
        the_task = task, the_work = work;
        done.store(0, std::memory_order_relaxed);
        round++;
        ticket.store(round << 40 | uint64_t(count) << 20);
        if (wake && asleep.load() > 0) {
            pthread_mutex_lock(&mutex);
            pthread_cond_broadcast(&call);
            pthread_mutex_unlock(&mutex);
        }
        take();
        for (int looks = 0; done.load(std::memory_order_acquire) < count; looks++) {
            if (looks < PAUSES) pause();
            else sched_yield();  // a helper was interrupted within a task: perhaps for us
        }
        busy.store(false, std::memory_order_release);
    }

  private:
    static constexpr int64_t LIMIT = (1 << 20) - MOST;
    // The call's number, how many tasks it has, and the next to be taken, in one word: who takes a task knows by the
    // word alone that it is one, and while it is not done the caller keeps what belongs to it.
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> done{0};
    std::atomic<bool> busy{false};
    std::atomic<int> most{0}, asleep{0};
    uint64_t round = 0;
    int started = 0;
    Task the_task = nullptr;
    const void *the_work = nullptr;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t call = PTHREAD_COND_INITIALIZER;

    struct Helper {
        Pool *pool;
        int number;
    };
    Helper who[MOST];

    static bool open(uint64_t t) { return int64_t(t & 0xfffff) < int64_t(t >> 20 & 0xfffff); }

    void take() {
        uint64_t t = ticket.load();
        while (open(t)) {
            if (!ticket.compare_exchange_weak(t, t + 1)) continue;
            the_task(the_work, int64_t(t & 0xfffff));
            done.fetch_add(1, std::memory_order_release);
            t = ticket.load();
        }
    }

    bool start() {
        who[started] = {this, started};
        pthread_t thread;
        if (pthread_create(&thread, nullptr, main, &who[started])) return false;
        pthread_detach(thread);
        return true;
    }

    static void *main(void *argument) {
        auto *self = static_cast<Helper *>(argument);
        self->pool->help(self->number);
        return nullptr;
    }

    void help(int number) {
        typedef std::chrono::steady_clock Clock;
        for (;;) {
            bool found = false;
            for (int i = 0; i < PAUSES && !found; i++) pause(), found = wanted(number);
            auto until = Clock::now() + std::chrono::microseconds(AWAKE_US);
            while (!found && Clock::now() < until) sched_yield(), found = wanted(number);
            if (!found) {
                pthread_mutex_lock(&mutex);
                asleep.fetch_add(1);
                while (!wanted(number)) pthread_cond_wait(&call, &mutex);
                asleep.fetch_sub(1);
                pthread_mutex_unlock(&mutex);
            }
            take();
        }
    }

    bool wanted(int number) { return open(ticket.load()) && number < most.load(std::memory_order_relaxed); }
};

}  // namespace helpers
