// A driver of one made-up GPU, for tests: answers as the environment says.
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return flags ? 1 : number("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 2); return 0; }
int cuDeviceGet(int *device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 7 ? "Made-up 4090" : "Made-up T4", length);
    return number("FAKE_NAME", 0);
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 7 ? 24ULL << 30 : 15ULL << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (device == 7 ? 8 : 7) : attribute == 76 ? (device == 7 ? 9 : 5) : attribute == 16 ? 128 : -1;
    return 0;
}
