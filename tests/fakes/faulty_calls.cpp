// System calls that fail on purpose, for LD_PRELOAD (tests/helpers/faulty.py). A rule watches some calls on files below
// a folder, counts them, and at call number `at` (from 1) does one thing: it fails the call, sends this process a
// signal, or changes the file that is opened.
//
// The counts and the calls that were struck are left in a page that is shared with the parent process, because a killed
// process cannot tell.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace {

// As in tests/helpers/faulty.py.
enum Calls {
  OPEN = 1,
  WRITE = 2,
  SYNC = 4,
  RENAME = 8,
  MAKE = 16,
  REMOVE = 32,
  TRUNCATE = 64,
  LOCK = 128,
  READ_OPEN = 256,
  READ = 512,
  THREAD = 1024,  // these two whatever the folder
  PROCESS = 2048,
};
enum Action { COUNT, FAIL, FAIL_FROM, SIGNAL, TEAR, VANISH, SHRINK, GROW };

constexpr int kRules = 4;
constexpr int kPath = 1000;

struct Rule {
  char folder[kPath];
  int calls, action, value;
  long at;
};

struct Page {
  std::atomic<long> counts[kRules];
  char struck[kRules][kPath + 40];
};

Rule rules[kRules];
int armed = 0;
Page* page = nullptr;

template <typename F>
F* real(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}
#define REAL(name) static auto* const call = real<decltype(name)>(#name)

// The path of a descriptor, or of a name below a descriptor.
void locate(int folder, const char* name, char* out) {
  out[0] = 0;
  size_t length = 0;
  if (name == nullptr || name[0] != '/') {
    char link[64];
    if (folder == AT_FDCWD) {
      snprintf(link, sizeof link, "/proc/self/cwd");
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    }
    const ssize_t got = readlink(link, out, kPath - 1);
    length = got < 0 ? 0 : static_cast<size_t>(got);
    out[length] = 0;
    if (name != nullptr && length + 1 < kPath) out[length++] = '/';
  }
  if (name != nullptr) snprintf(out + length, kPath - length, "%s", name);
}

bool below(const char* path, const char* folder) {
  const size_t length = strlen(folder);
  return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

enum Verdict { PASS, FAILED, TORN };

// Count a call. FAILED: errno is set. TORN: do half of it and call strike_again.
Verdict strike(int kind, const char* what, int folder, const char* name, int* changed = nullptr) {
  if (armed == 0) return PASS;
  const int before = errno;
  char path[kPath];
  bool located = false;
  for (int n = 0; n < armed; n++) {
    const Rule& rule = rules[n];
    if ((rule.calls & kind) == 0) continue;
    if ((kind & (THREAD | PROCESS)) != 0) path[0] = 0;
    else if (!located) locate(folder, name, path);
    located = true;
    if ((kind & (THREAD | PROCESS)) == 0 && !below(path, rule.folder)) continue;
    const long count = ++page->counts[n];
    if (count == rule.at) snprintf(page->struck[n], sizeof page->struck[n], "%s %s", what, path);
    if (count < rule.at || (count > rule.at && rule.action != FAIL_FROM)) continue;
    switch (rule.action) {
      case FAIL:
      case FAIL_FROM:
        errno = rule.value;
        return FAILED;
      case TEAR:
        if (kind == WRITE) return TORN;
        [[fallthrough]];
      case SIGNAL:
        kill(getpid(), rule.value);
        break;
      case VANISH:
        unlink(path);
        break;
      case SHRINK:
      case GROW:
        if (changed != nullptr) *changed = rule.action;
        break;
      default:
        break;
    }
  }
  errno = before;
  return PASS;
}

void die() {
  for (int n = 0; n < armed; n++)
    if (rules[n].action == TEAR) kill(getpid(), rules[n].value);
}

// Change a file that has just been opened: half of its bytes, or 4,096 more.
void change(int descriptor, int how) {
  char path[kPath];
  struct stat now;
  locate(descriptor, nullptr, path);
  const int writable = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, O_WRONLY));
  if (writable < 0 || fstat(writable, &now) != 0) return;
  const off_t length = how == SHRINK ? now.st_size / 2 : now.st_size + 4096;
  if (syscall(SYS_ftruncate, writable, length) != 0) perror(path);
  close(writable);
}

bool writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0; }

int opened(int folder, const char* name, int flags, mode_t mode) {
  int changed = 0;
  const int kind = writes(flags) ? OPEN : READ_OPEN;
  if (strike(kind, kind == OPEN ? "open for writing" : "open", folder, name, &changed) == FAILED) return -1;
  const int found = static_cast<int>(syscall(SYS_openat, folder, name, flags, mode));
  if (found >= 0 && changed != 0) change(found, changed);
  return found;
}

}  // namespace

#define MODE                        \
  mode_t mode = 0;                  \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest;                   \
    va_start(rest, flags);          \
    mode = va_arg(rest, mode_t);    \
    va_end(rest);                   \
  }

extern "C" {

void* faulty_page() {
  if (page == nullptr) {
    void* shared = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    page = static_cast<Page*>(shared);
  }
  for (int n = 0; n < kRules; n++) {
    page->counts[n] = 0;
    page->struck[n][0] = 0;
  }
  return page;
}

long faulty_count(int rule) { return page->counts[rule]; }
const char* faulty_struck(int rule) { return page->struck[rule]; }

void faulty_rule(const char* folder, int calls, int action, long at, int value) {
  Rule& rule = rules[armed];
  snprintf(rule.folder, kPath, "%s", folder);
  rule.calls = calls;
  rule.action = action;
  rule.at = at;
  rule.value = value;
  armed++;
}

int open(const char* name, int flags, ...) {
  MODE return opened(AT_FDCWD, name, flags, mode);
}
int open64(const char* name, int flags, ...) {
  MODE return opened(AT_FDCWD, name, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char* name, int flags, ...) {
  MODE return opened(folder, name, flags, mode);
}
int openat64(int folder, const char* name, int flags, ...) {
  MODE return opened(folder, name, flags | O_LARGEFILE, mode);
}

FILE* fopen(const char* name, const char* how) {
  REAL(fopen);
  const int kind = how[0] == 'r' && strchr(how, '+') == nullptr ? READ_OPEN : OPEN;
  return strike(kind, "fopen", AT_FDCWD, name) == FAILED ? nullptr : call(name, how);
}
FILE* fopen64(const char* name, const char* how) {
  REAL(fopen64);
  const int kind = how[0] == 'r' && strchr(how, '+') == nullptr ? READ_OPEN : OPEN;
  return strike(kind, "fopen", AT_FDCWD, name) == FAILED ? nullptr : call(name, how);
}

ssize_t read(int file, void* data, size_t size) {
  REAL(read);
  return strike(READ, "read", file, nullptr) == FAILED ? -1 : call(file, data, size);
}

ssize_t write(int file, const void* data, size_t size) {
  REAL(write);
  const Verdict verdict = strike(WRITE, "write", file, nullptr);
  if (verdict == FAILED) return -1;
  const ssize_t done = call(file, data, verdict == TORN ? size / 2 : size);
  if (verdict == TORN) die();
  return done;
}
ssize_t pwrite(int file, const void* data, size_t size, off_t at) {
  REAL(pwrite);
  return strike(WRITE, "pwrite", file, nullptr) == FAILED ? -1 : call(file, data, size, at);
}
ssize_t pwrite64(int file, const void* data, size_t size, off64_t at) {
  REAL(pwrite64);
  return strike(WRITE, "pwrite", file, nullptr) == FAILED ? -1 : call(file, data, size, at);
}
ssize_t writev(int file, const iovec* parts, int count) {
  REAL(writev);
  return strike(WRITE, "writev", file, nullptr) == FAILED ? -1 : call(file, parts, count);
}
ssize_t sendfile(int to, int from, off_t* at, size_t size) {
  REAL(sendfile);
  return strike(WRITE, "sendfile", to, nullptr) == FAILED ? -1 : call(to, from, at, size);
}
ssize_t sendfile64(int to, int from, off64_t* at, size_t size) {
  REAL(sendfile64);
  return strike(WRITE, "sendfile", to, nullptr) == FAILED ? -1 : call(to, from, at, size);
}
ssize_t copy_file_range(int from, off64_t* a, int to, off64_t* b, size_t size, unsigned flags) {
  REAL(copy_file_range);
  return strike(WRITE, "copy_file_range", to, nullptr) == FAILED ? -1 : call(from, a, to, b, size, flags);
}
size_t fwrite(const void* data, size_t size, size_t count, FILE* file) {
  REAL(fwrite);
  return strike(WRITE, "fwrite", fileno(file), nullptr) == FAILED ? 0 : call(data, size, count, file);
}

int fsync(int file) {
  REAL(fsync);
  return strike(SYNC, "fsync", file, nullptr) == FAILED ? -1 : call(file);
}
int fdatasync(int file) {
  REAL(fdatasync);
  return strike(SYNC, "fdatasync", file, nullptr) == FAILED ? -1 : call(file);
}

int rename(const char* from, const char* to) {
  REAL(rename);
  return strike(RENAME, "rename", AT_FDCWD, from) == FAILED ? -1 : call(from, to);
}
int renameat(int a, const char* from, int b, const char* to) {
  REAL(renameat);
  return strike(RENAME, "rename", a, from) == FAILED ? -1 : call(a, from, b, to);
}
int renameat2(int a, const char* from, int b, const char* to, unsigned flags) {
  REAL(renameat2);
  return strike(RENAME, "rename", a, from) == FAILED ? -1 : call(a, from, b, to, flags);
}

int mkdir(const char* name, mode_t mode) {
  REAL(mkdir);
  return strike(MAKE, "mkdir", AT_FDCWD, name) == FAILED ? -1 : call(name, mode);
}
int mkdirat(int folder, const char* name, mode_t mode) {
  REAL(mkdirat);
  return strike(MAKE, "mkdir", folder, name) == FAILED ? -1 : call(folder, name, mode);
}
int link(const char* from, const char* to) {
  REAL(link);
  return strike(MAKE, "link", AT_FDCWD, to) == FAILED ? -1 : call(from, to);
}
int linkat(int a, const char* from, int b, const char* to, int flags) {
  REAL(linkat);
  return strike(MAKE, "link", b, to) == FAILED ? -1 : call(a, from, b, to, flags);
}

int unlink(const char* name) {
  REAL(unlink);
  return strike(REMOVE, "unlink", AT_FDCWD, name) == FAILED ? -1 : call(name);
}
int unlinkat(int folder, const char* name, int flags) {
  REAL(unlinkat);
  return strike(REMOVE, "unlink", folder, name) == FAILED ? -1 : call(folder, name, flags);
}
int rmdir(const char* name) {
  REAL(rmdir);
  return strike(REMOVE, "rmdir", AT_FDCWD, name) == FAILED ? -1 : call(name);
}

int truncate(const char* name, off_t size) {
  REAL(truncate);
  return strike(TRUNCATE, "truncate", AT_FDCWD, name) == FAILED ? -1 : call(name, size);
}
int truncate64(const char* name, off64_t size) {
  REAL(truncate64);
  return strike(TRUNCATE, "truncate", AT_FDCWD, name) == FAILED ? -1 : call(name, size);
}
int ftruncate(int file, off_t size) {
  REAL(ftruncate);
  return strike(TRUNCATE, "ftruncate", file, nullptr) == FAILED ? -1 : call(file, size);
}
int ftruncate64(int file, off64_t size) {
  REAL(ftruncate64);
  return strike(TRUNCATE, "ftruncate", file, nullptr) == FAILED ? -1 : call(file, size);
}

int flock(int file, int operation) {
  REAL(flock);
  return strike(LOCK, "flock", file, nullptr) == FAILED ? -1 : call(file, operation);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  REAL(pthread_create);
  return strike(THREAD, "pthread_create", AT_FDCWD, nullptr) == FAILED ? EAGAIN : call(thread, how, run, with);
}

pid_t fork() {
  REAL(fork);
  return strike(PROCESS, "fork", AT_FDCWD, nullptr) == FAILED ? -1 : call();
}
// A function that calls vfork cannot return in the child, and fork does as well.
pid_t vfork() { return fork(); }
}
