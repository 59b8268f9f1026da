// The four functions of libgomp that the extension calls, made of what ThreadSanitizer sees: threads that are created and
// joined, and POSIX barriers. libgomp's own are futexes in a library that is not instrumented, so that every access
// before a barrier would seem to race with those after it.
#include <pthread.h>

#include <vector>

namespace {

struct Member {
    int number, threads;
    pthread_barrier_t* barrier;
    void (*region)(void*);
    void* data;
};

thread_local const Member* self = nullptr;

void* work(void* member) {
    self = static_cast<const Member*>(member);
    self->region(self->data);
    return nullptr;
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return self->number; }

int omp_get_num_threads() { return self->threads; }

void GOMP_barrier() { pthread_barrier_wait(self->barrier); }

void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned) {
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, nullptr, threads);
    std::vector<Member> members;
    for (unsigned number = 0; number < threads; ++number)
        members.push_back({static_cast<int>(number), static_cast<int>(threads), &barrier, region, data});
    std::vector<pthread_t> team(threads);
    for (unsigned number = 0; number < threads; ++number) pthread_create(&team[number], nullptr, work, &members[number]);
    for (pthread_t thread : team) pthread_join(thread, nullptr);
    pthread_barrier_destroy(&barrier);
}
}
