// A fake CUDA driver for tests, with made-up GPUs. It runs kernels on the host, and only once somebody waits for them.
// tests/fakes/host_device.py replaces a Device. This replaces the driver below the device libraries.
//
// Environment variables set its answers:
// FAKE_INIT, FAKE_NAME: the CUresult that cuInit or cuDeviceGetName returns.
// FAKE_CUDA: the CUDA version the driver supports.
// FAKE_COUNT: the number of GPUs.
// FAKE_MEMORY: bytes of GPU memory.
// FAKE_KERNELS: a library with two symbols for each kernel: <name>_run(argument pointers, grid, block, shared bytes),
//     and <name>_sizes, the sizes of its arguments in bytes with a 0 after the last.
// FAKE_TRACE: if set, print each function that a library looks up.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// A real driver may refuse these calls in a thread without a context. This one always does.
#define NEEDS_CONTEXT \
    if (!current) return 201

namespace {

using Work = std::function<void()>;
using Body = void (*)(void **, const unsigned *, unsigned, unsigned);

struct Graph {
    std::vector<Work> work;
};
struct Stream {
    std::vector<Work> given;
    std::size_t done = 0;
    Graph *recording = nullptr;
    void give(Work work) { (recording ? recording->work : given).push_back(std::move(work)); }
    void run(std::size_t until) {
        while (done < until) given[done++]();
    }
};
struct Event {
    Stream *stream = nullptr;
    std::size_t place = 0;
    bool timed = false;
};
struct Kernel {
    Body body = nullptr;
    const int *sizes = nullptr;
    int most_shared = 48 << 10;
};

int context;
thread_local void *current = nullptr;
std::mutex lock;
std::map<std::uintptr_t, std::size_t> held;
std::size_t used = 0;
Stream legacy;

long number(const char *name, long otherwise) {
    const char *text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}
Stream *at(void *stream) { return reinterpret_cast<std::uintptr_t>(stream) < 16 ? &legacy : static_cast<Stream *>(stream); }

int allocate(void **pointer, std::size_t bytes, bool counted) {
    NEEDS_CONTEXT;
    if (counted && used + bytes > std::size_t(number("FAKE_MEMORY", 1 << 30))) return 2;
    const std::lock_guard<std::mutex> guard(lock);
    *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*pointer, 0xff, bytes);
    held[std::uintptr_t(*pointer)] = counted ? bytes : 0;
    used += counted ? bytes : 0;
    return 0;
}
int release(std::uintptr_t pointer) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = held.find(pointer);
    if (found == held.end()) return 1;
    used -= found->second;
    held.erase(found);
    std::free(reinterpret_cast<void *>(pointer));
    return 0;
}
// Arguments come as one pointer each, or in one buffer, each aligned by its size (`extra`: 1, buffer, 2, its size, 0).
int launch(Kernel *kernel, const unsigned *grid, unsigned block, unsigned shared, Stream *stream, void **arguments,
           void **extra) {
    NEEDS_CONTEXT;
    if (int(shared) > kernel->most_shared) return 1;
    struct Call {
        std::vector<std::uint64_t> values;
        unsigned grid[3];
    };
    auto call = std::make_shared<Call>();
    std::memcpy(call->grid, grid, sizeof call->grid);
    const char *buffer = arguments ? nullptr : static_cast<char *>(extra[1]);
    std::size_t offset = 0;
    for (int i = 0; const int size = kernel->sizes[i]; ++i) {
        offset = (offset + size - 1) / size * size;
        call->values.push_back(0);
        std::memcpy(&call->values.back(), buffer ? buffer + offset : arguments[i], size);
        offset += size;
    }
    if (buffer && offset != *static_cast<std::size_t *>(extra[3])) return 1;
    stream->give([=] {
        std::vector<void *> pointers;
        for (auto &value : call->values) pointers.push_back(&value);
        kernel->body(pointers.data(), call->grid, block, shared);
    });
    return 0;
}

}  // namespace

#define ANSWER extern "C" __attribute__((visibility("default"))) int

ANSWER cuInit(unsigned flags) { return flags ? 1 : number("FAKE_INIT", 0); }
ANSWER cuDriverGetVersion(int *version) { return *version = number("FAKE_CUDA", 13000), 0; }
ANSWER cuGetErrorName(int code, const char **name) {
    return *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 0 ? "CUDA_SUCCESS" : "CUDA_ERROR_OF_SOME_KIND", 0;
}
ANSWER cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

ANSWER cuDeviceGetCount(int *count) { return *count = number("FAKE_COUNT", 2), 0; }
ANSWER cuDeviceGet(int *device, int index) { return *device = index, 0; }
ANSWER cuDeviceGetName(char *name, int length, int device) {
    std::strncpy(name, device == 0 ? "Made-up 4090" : "Made-up T4", length);
    return number("FAKE_NAME", 0);
}
ANSWER cuDeviceTotalMem_v2(std::size_t *bytes, int device) { return *bytes = (device == 0 ? 24ULL : 15ULL) << 30, 0; }
ANSWER cuDeviceGetAttribute(int *value, int attribute, int device) {
    // Multiprocessors, compute capability, memory pools, shared memory per block. All other attributes are 0.
    const std::map<int, int> known = {{16, 128}, {75, device == 0 ? 8 : 7}, {76, device == 0 ? 9 : 5}, {115, 1}, {97, 101376}};
    const auto found = known.find(attribute);
    return *value = found == known.end() ? 0 : found->second, 0;
}
ANSWER cuDevicePrimaryCtxRetain(void **made, int) { return *made = &context, 0; }
ANSWER cuDevicePrimaryCtxRelease_v2(int) { return 0; }
ANSWER cuCtxSetCurrent(void *made) { return current = made, 0; }
ANSWER cuCtxGetCurrent(void **made) { return *made = current, 0; }
ANSWER cuCtxPushCurrent_v2(void *made) { return current = made, 0; }
ANSWER cuCtxPopCurrent_v2(void **made) { return *made = current, current = nullptr, 0; }
ANSWER cuCtxDetach(void *) { return 0; }
ANSWER cuCtxGetDevice(int *device) { return *device = 0, current ? 0 : 201; }
ANSWER cuCtxGetDevice_v2(int *device, void *) { return *device = 0, 0; }
ANSWER cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = *greatest = 0, 0; }

ANSWER cuMemAlloc_v2(std::uintptr_t *pointer, std::size_t bytes) { return allocate(reinterpret_cast<void **>(pointer), bytes, true); }
ANSWER cuMemFree_v2(std::uintptr_t pointer) { return release(pointer); }
ANSWER cuMemAllocHost_v2(void **pointer, std::size_t bytes) { return allocate(pointer, bytes, false); }
ANSWER cuMemHostAlloc(void **pointer, std::size_t bytes, unsigned) { return allocate(pointer, bytes, false); }
ANSWER cuMemFreeHost(void *pointer) { return release(std::uintptr_t(pointer)); }
ANSWER cuMemGetInfo_v2(std::size_t *free, std::size_t *total) {
    *total = number("FAKE_MEMORY", 1 << 30);
    return *free = *total - used, 0;
}
ANSWER cuMemcpyAsync(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, void *stream) {
    NEEDS_CONTEXT;
    at(stream)->give([=] { std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes); });
    return 0;
}
ANSWER cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void *from, std::size_t bytes, void *stream) {
    return cuMemcpyAsync(to, std::uintptr_t(from), bytes, stream);
}
ANSWER cuMemcpyDtoHAsync_v2(void *to, std::uintptr_t from, std::size_t bytes, void *stream) {
    return cuMemcpyAsync(std::uintptr_t(to), from, bytes, stream);
}
ANSWER cuMemcpyDtoDAsync_v2(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, void *stream) {
    return cuMemcpyAsync(to, from, bytes, stream);
}

ANSWER cuStreamCreateWithPriority(void **stream, unsigned, int) { return *stream = new Stream, 0; }
ANSWER cuStreamCreate(void **stream, unsigned) { return *stream = new Stream, 0; }
// Streams and events are never freed, because pending work may still refer to them.
ANSWER cuStreamDestroy_v2(void *) { return 0; }
ANSWER cuStreamSynchronize(void *stream) {
    NEEDS_CONTEXT;
    if (at(stream)->recording) return 900;
    return at(stream)->run(at(stream)->given.size()), 0;
}
ANSWER cuStreamGetCtx(void *, void **made) { return *made = &context, 0; }
ANSWER cuStreamIsCapturing(void *stream, int *status) { return *status = at(stream)->recording != nullptr, 0; }
ANSWER cuStreamWaitEvent(void *stream, Event *event, unsigned) {
    NEEDS_CONTEXT;
    if (at(stream)->recording) return 905;
    Stream *other = event->stream;
    const std::size_t place = event->place;
    if (other) at(stream)->given.push_back([=] { other->run(place); });
    return 0;
}
ANSWER cuEventCreate(Event **event, unsigned flags) { return *event = new Event, (*event)->timed = !(flags & 2), 0; }
ANSWER cuEventDestroy_v2(Event *) { return 0; }
ANSWER cuEventRecord(Event *event, void *stream) {
    NEEDS_CONTEXT;
    if (at(stream)->recording) return 900;
    return event->stream = at(stream), event->place = at(stream)->given.size(), 0;
}
ANSWER cuEventSynchronize(Event *event) {
    NEEDS_CONTEXT;
    if (event->stream) event->stream->run(event->place);
    return 0;
}
ANSWER cuEventQuery(Event *event) { return event->stream && event->stream->done < event->place ? 600 : 0; }
ANSWER cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *until) {
    NEEDS_CONTEXT;
    *milliseconds = 0.25f;
    if (!from->timed || !until->timed || !from->stream || !until->stream) return 400;
    return cuEventQuery(from) ? 600 : cuEventQuery(until);
}
ANSWER cuEventElapsedTime(float *milliseconds, Event *from, Event *until) { return cuEventElapsedTime_v2(milliseconds, from, until); }

ANSWER cuStreamBeginCapture_v2(void *stream, int) { return at(stream)->recording = new Graph, 0; }
ANSWER cuStreamEndCapture(void *stream, Graph **graph) {
    return *graph = at(stream)->recording, at(stream)->recording = nullptr, 0;
}
ANSWER cuStreamGetCaptureInfo_v2(void *stream, int *status, std::uint64_t *id, Graph **graph, void *, void *) {
    if (id) *id = 1;
    if (graph) *graph = at(stream)->recording;
    return *status = at(stream)->recording != nullptr, 0;
}
ANSWER cuStreamGetCaptureInfo_v3(void *stream, int *status, std::uint64_t *id, Graph **graph, void *a, void *, void *) {
    return cuStreamGetCaptureInfo_v2(stream, status, id, graph, a, nullptr);
}
ANSWER cuGraphInstantiateWithFlags(Graph **made, Graph *graph, unsigned long long) { return *made = new Graph{*graph}, 0; }
ANSWER cuGraphInstantiateWithParams(Graph **made, Graph *graph, void *) { return *made = new Graph{*graph}, 0; }
ANSWER cuGraphLaunch(Graph *graph, void *stream) {
    NEEDS_CONTEXT;
    for (const Work &work : graph->work) at(stream)->give(work);
    return 0;
}
// User objects keep a graph's resources alive. Here nothing is ever freed.
ANSWER cuUserObjectCreate(void **object, void *, void *, unsigned, unsigned) { return *object = &context, 0; }
ANSWER cuUserObjectRetain(void *, unsigned) { return 0; }
ANSWER cuUserObjectRelease(void *, unsigned) { return 0; }
ANSWER cuGraphRetainUserObject(Graph *, void *, unsigned, unsigned) { return 0; }
ANSWER cuGraphReleaseUserObject(Graph *, void *, unsigned) { return 0; }
ANSWER cuGraphDestroy(Graph *) { return 0; }
ANSWER cuGraphExecDestroy(Graph *) { return 0; }

ANSWER cuLibraryLoadData(void **library, const void *code, void *, void *, unsigned, void *, void *, unsigned) {
    // Like a real driver, accept only ELF.
    if (std::memcmp(code, "\177ELF", 4)) return 200;
    *library = dlopen(std::getenv("FAKE_KERNELS"), RTLD_NOW | RTLD_LOCAL);
    return *library ? 0 : 200;
}
ANSWER cuLibraryUnload(void *) { return 0; }
ANSWER cuLibraryGetKernel(Kernel **kernel, void *library, const char *name) {
    const auto body = reinterpret_cast<Body>(dlsym(library, (std::string(name) + "_run").c_str()));
    const auto *sizes = static_cast<const int *>(dlsym(library, (std::string(name) + "_sizes").c_str()));
    if (!body || !sizes) return 500;
    return *kernel = new Kernel{body, sizes}, 0;
}
ANSWER cuModuleLoadDataEx(void **module, const void *code, unsigned, int *, void **) {
    return cuLibraryLoadData(module, code, nullptr, nullptr, 0, nullptr, nullptr, 0);
}
ANSWER cuModuleUnload(void *) { return 0; }
ANSWER cuModuleGetFunction(Kernel **kernel, void *module, const char *name) { return cuLibraryGetKernel(kernel, module, name); }
ANSWER cuKernelGetAttribute(int *value, int attribute, Kernel *kernel, int) {
    return *value = attribute == 8 ? kernel->most_shared : 0, 0;
}
ANSWER cuKernelSetAttribute(int attribute, int value, Kernel *kernel, int) {
    return attribute == 8 ? (kernel->most_shared = value, 0) : 1;
}
ANSWER cuFuncGetAttribute(int *value, int attribute, Kernel *kernel) { return cuKernelGetAttribute(value, attribute, kernel, 0); }
ANSWER cuFuncSetAttribute(Kernel *kernel, int attribute, int value) { return cuKernelSetAttribute(attribute, value, kernel, 0); }
// pycuda also calls this before a launch.
ANSWER cuFuncSetBlockShape(Kernel *, int, int, int) { return 0; }
ANSWER cuLaunchKernelEx(const void *config, Kernel *kernel, void **arguments, void **extra) {
    struct Config {
        unsigned grid[3], block[3], shared;
        void *stream;
    };
    const auto *given = static_cast<const Config *>(config);
    return launch(kernel, given->grid, given->block[0], given->shared, at(given->stream), arguments, extra);
}
ANSWER cuLaunchKernel(Kernel *kernel, unsigned x, unsigned y, unsigned z, unsigned block, unsigned, unsigned, unsigned shared,
                      void *stream, void **arguments, void **extra) {
    const unsigned grid[3] = {x, y, z};
    return launch(kernel, grid, block, shared, at(stream), arguments, extra);
}

// Libraries find the functions above here, by names without the version suffix.
ANSWER cuGetProcAddress_v2(const char *name, void **function, int, std::uint64_t, int *status) {
    *function = nullptr;
    for (const char *suffix : {"_v3", "_v2", ""}) {
        if (!*function) *function = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str());
    }
    if (std::getenv("FAKE_TRACE")) fprintf(stderr, "%s %s\n", *function ? "+" : "-", name);
    if (status) *status = *function ? 0 : 1;
    return 0;
}
// NVRTC asks for the driver's own cache of compiled code.
ANSWER cuGetExportTable(const void **, const void *) { return 500; }
