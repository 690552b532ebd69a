/* Events: lines `UUID XID` that are appended to the file `events` after a card was registered. */
#define _GNU_SOURCE
#include "state.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { POLL_MS = 20, LINE_SIZE = 256 };

struct nvmlEventSet_st {
    /* Threads register cards while another one waits. */
    _Atomic(nvmlDevice_t) devices[MAX_GPUS];
    atomic_uint count;
    off_t read;
};

static off_t size_of_events(void) {
    char path[4096];
    struct stat info;
    return standin_path("events", path, sizeof path) && stat(path, &info) == 0 ? info.st_size : 0;
}

/* Takes the next complete line behind what was read; a half-written one waits. */
static bool next_line(nvmlEventSet_t set, char *line) {
    char path[4096];
    int fd = standin_path("events", path, sizeof path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t got = pread(fd, line, LINE_SIZE - 1, set->read);
    close(fd);
    char *end = got > 0 ? memchr(line, '\n', (size_t)got) : NULL;
    if (!end)
        return false;
    *end = '\0';
    set->read += end - line + 1;
    return true;
}

static bool parse(nvmlEventSet_t set, const char *line, nvmlEventData_t *data) {
    char uuid[TEXT_SIZE];
    unsigned long long xid;
    if (sscanf(line, "%95s %llu", uuid, &xid) != 2)
        return false;
    const unsigned count = atomic_load(&set->count);
    for (unsigned i = 0; i < count && i < MAX_GPUS; i++) {
        nvmlDevice_t device = atomic_load(&set->devices[i]);
        if (device && strcmp(device->uuid, uuid) == 0) {
            *data = (nvmlEventData_t){.device = device,
                                      .eventType = nvmlEventTypeXidCriticalError,
                                      .eventData = xid,
                                      .gpuInstanceId = 0xFFFFFFFF,
                                      .computeInstanceId = 0xFFFFFFFF};
            return true;
        }
    }
    return false;
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    TRY(standin_enter(__func__, NULL));
    *set = calloc(1, sizeof **set);
    if (!*set)
        return NVML_ERROR_MEMORY;
    (*set)->read = size_of_events();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    TRY(standin_enter(__func__, NULL));
    free(set);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    TRY(standin_enter(__func__, device));
    *types = nvmlEventTypeXidCriticalError;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    TRY(standin_enter(__func__, device));
    if (types & ~(unsigned long long)nvmlEventTypeXidCriticalError)
        return NVML_ERROR_NOT_SUPPORTED;
    const unsigned place = atomic_fetch_add(&set->count, 1);
    if (place >= MAX_GPUS)
        return NVML_ERROR_NOT_SUPPORTED;
    atomic_store(&set->devices[place], device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    char line[LINE_SIZE];
    const long long end = now_ms() + timeout_ms;
    TRY(standin_enter(__func__, NULL));
    for (;;) {
        while (next_line(set, line))
            if (parse(set, line, data))
                return NVML_SUCCESS;
        if (now_ms() >= end)
            return NVML_ERROR_TIMEOUT;
        nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
    }
}
