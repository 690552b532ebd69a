#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef enum { FAULT_NONE, FAULT_ERROR, FAULT_LATENCY, FAULT_HANG, FAULT_HANG_D, FAULT_IGNORE } action_t;

typedef struct {
    char function[TEXT_SIZE];
    char uuid[TEXT_SIZE];
    action_t action;
    long long value;
} fault_t;

typedef struct {
    struct timespec changed;
    ino_t inode;
    off_t size;
    bool there;
} stamp_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;
static gpu_t *gpus;
static size_t gpu_count;
static fault_t *faults;
static size_t fault_count;
static stamp_t state_stamp, faults_stamp;
static struct nvmlDevice_st handles[MAX_GPUS];
static struct nvmlDevice_st mig_handles[MAX_GPUS][MAX_MIG];
static size_t handle_count;

static const char *const number_names[N_COUNT] = {
#define X(key) #key,
    NUMBERS(X)
#undef X
};
static const char *const text_names[T_COUNT] = {
#define X(key) #key,
    TEXTS(X)
#undef X
};

bool standin_path(const char *file, char *out, size_t size) {
    const char *directory = getenv("NVML_STANDIN_DIR");
    return directory && (size_t)snprintf(out, size, "%s/%s", directory, file) < size;
}

static stamp_t stamp_of(const char *path) {
    struct stat info;
    stamp_t stamp = {0};
    if (stat(path, &info) == 0)
        stamp = (stamp_t){info.st_mtim, info.st_ino, info.st_size, true};
    return stamp;
}

static bool same(stamp_t a, stamp_t b) {
    return a.there == b.there && a.inode == b.inode && a.size == b.size &&
           a.changed.tv_sec == b.changed.tv_sec && a.changed.tv_nsec == b.changed.tv_nsec;
}

static char *read_file(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct stat info;
    char *content = NULL;
    if (fstat(fd, &info) == 0 && (content = malloc((size_t)info.st_size + 1))) {
        ssize_t got = 0, part;
        while (got < info.st_size && (part = read(fd, content + got, (size_t)(info.st_size - got))) > 0)
            got += part;
        content[got] = '\0';
    }
    close(fd);
    return content;
}

static nvmlDevice_t handle_for(const char *uuid) {
    for (size_t i = 0; i < handle_count; i++)
        if (strcmp(handles[i].uuid, uuid) == 0)
            return &handles[i];
    if (handle_count == MAX_GPUS)
        return NULL;
    snprintf(handles[handle_count].uuid, TEXT_SIZE, "%s", uuid);
    handles[handle_count].mig = -1;
    return &handles[handle_count++];
}

static void add_process(gpu_t *gpu, const char *line) {
    process_t one = {.kind = 'C'};
    if (sscanf(line, "%u %llu %c %u", &one.pid, &one.memory, &one.kind, &one.sm_utilization) < 2)
        return;
    /* Room grows in powers of two. */
    if ((gpu->process_count & (gpu->process_count - 1)) == 0) {
        size_t room = gpu->process_count ? gpu->process_count * 2 : 1;
        process_t *bigger = realloc(gpu->processes, room * sizeof one);
        if (!bigger)
            return;
        gpu->processes = bigger;
    }
    gpu->processes[gpu->process_count++] = one;
}

static void set_value(gpu_t *gpu, const char *key, const char *value) {
    if (strcmp(key, "process") == 0) {
        add_process(gpu, value);
        return;
    }
    if (rows_know(key)) {
        rows_add(gpu, key, value);
        return;
    }
    for (int i = 0; i < N_COUNT; i++)
        if (strcmp(key, number_names[i]) == 0) {
            gpu->number[i] = atoll(value);
            gpu->has[i] = true;
            return;
        }
    for (int i = 0; i < T_COUNT; i++)
        if (strcmp(key, text_names[i]) == 0)
            snprintf(gpu->text[i], TEXT_SIZE, "%s", value);
}

static void load_state(char *content) {
    for (size_t i = 0; i < gpu_count; i++) {
        free(gpus[i].processes);
        free(gpus[i].rows);
    }
    gpu_count = 0;
    if (!content || (!gpus && !(gpus = calloc(MAX_GPUS, sizeof *gpus))))
        return;
    char *rest = content, *line;
    while ((line = strsep(&rest, "\n"))) {
        char *value = strchr(line, ' ');
        if (!value)
            continue;
        *value++ = '\0';
        if (strcmp(line, "gpu") == 0) {
            if (gpu_count == MAX_GPUS || !handle_for(value))
                return;
            memset(&gpus[gpu_count], 0, sizeof *gpus);
            snprintf(gpus[gpu_count++].uuid, TEXT_SIZE, "%s", value);
        } else if (gpu_count) {
            set_value(&gpus[gpu_count - 1], line, value);
        }
    }
}

static void load_faults(char *content) {
    static const struct { const char *name; action_t action; } actions[] = {
        {"error", FAULT_ERROR}, {"latency_ms", FAULT_LATENCY}, {"hang", FAULT_HANG},
        {"hang_uninterruptible", FAULT_HANG_D}, {"ignore", FAULT_IGNORE},
    };
    fault_count = 0;
    char *rest = content, *line;
    while (rest && (line = strsep(&rest, "\n"))) {
        fault_t fault = {.value = 0};
        char action[32];
        if (sscanf(line, "%95s %95s %31s %lld", fault.function, fault.uuid, action, &fault.value) < 3)
            continue;
        for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
            if (strcmp(action, actions[i].name) == 0)
                fault.action = actions[i].action;
        fault_t *bigger = realloc(faults, (fault_count + 1) * sizeof fault);
        if (fault.action == FAULT_NONE || !bigger)
            continue;
        faults = bigger;
        faults[fault_count++] = fault;
    }
}

static void refresh(const char *file, stamp_t *known, void (*load)(char *)) {
    char path[4096];
    if (!standin_path(file, path, sizeof path))
        return;
    stamp_t now = stamp_of(path);
    if (same(now, *known))
        return;
    char *content = now.there ? read_file(path) : NULL;
    load(content);
    free(content);
    *known = now;
}

static void refresh_all(void) {
    refresh("state", &state_stamp, load_state);
    refresh("faults", &faults_stamp, load_faults);
}

static gpu_t *gpu_of(nvmlDevice_t device) {
    for (size_t i = 0; device && i < gpu_count; i++)
        if (strcmp(gpus[i].uuid, device->uuid) == 0)
            return gpus[i].number[N_absent] ? NULL : &gpus[i];
    return NULL;
}

/* A fault on nvmlDeviceGetMemoryInfo also holds for nvmlDeviceGetMemoryInfo_v2. */
static bool names(const char *pattern, const char *function) {
    size_t length = strlen(pattern);
    if (strcmp(pattern, "*") == 0)
        return strncmp(function, "nvmlInit", 8) != 0 && strcmp(function, "nvmlShutdown") != 0;
    return strncmp(pattern, function, length) == 0 &&
           (function[length] == '\0' || strncmp(function + length, "_v", 2) == 0);
}

static fault_t matching_fault(const char *function, nvmlDevice_t device, bool ignore) {
    for (size_t i = fault_count; i-- > 0;) {
        bool card = strcmp(faults[i].uuid, "*") == 0 ||
                    (device && strcmp(faults[i].uuid, device->uuid) == 0);
        if (card && names(faults[i].function, function) && (faults[i].action == FAULT_IGNORE) == ignore)
            return faults[i];
    }
    return (fault_t){.action = FAULT_NONE};
}

static void sleep_ms(long long milliseconds) {
    struct timespec left = {milliseconds / 1000, (milliseconds % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

static void wait_while_hung(const char *function, nvmlDevice_t device, pid_t parent) {
    action_t action;
    do {
        sleep_ms(20);
        pthread_mutex_lock(&lock);
        refresh_all();
        action = matching_fault(function, device, false).action;
        pthread_mutex_unlock(&lock);
    } while ((action == FAULT_HANG || action == FAULT_HANG_D) && (!parent || getppid() == parent));
}

/* The parent of a vfork sleeps in state D until its child ends: the nearest an ordinary process
 * comes to a call that is stuck in a driver. */
static void hang_uninterruptibly(const char *function, nvmlDevice_t device) {
    pid_t self = getpid();
    pid_t child = vfork();
    if (child == 0) {
        wait_while_hung(function, device, self);
        _exit(0);
    }
    if (child > 0)
        waitpid(child, NULL, 0);
}

nvmlReturn_t standin_enter(const char *function, nvmlDevice_t device) {
    pthread_mutex_lock(&lock);
    refresh_all();
    bool ready = users > 0 || strncmp(function, "nvmlInit", 8) == 0;
    fault_t fault = matching_fault(function, device, false);
    gpu_t *gpu = gpu_of(device);
    long long latency = gpu ? gpu->number[N_latency_ms] : 0;
    pthread_mutex_unlock(&lock);
    if (!ready)
        return NVML_ERROR_UNINITIALIZED;
    if (fault.action == FAULT_LATENCY)
        latency += fault.value;
    if (latency > 0)
        sleep_ms(latency);
    if (fault.action == FAULT_HANG)
        wait_while_hung(function, device, 0);
    if (fault.action == FAULT_HANG_D)
        hang_uninterruptibly(function, device);
    if (fault.action == FAULT_ERROR)
        return (nvmlReturn_t)fault.value;
    if (!device)
        return NVML_SUCCESS;
    pthread_mutex_lock(&lock);
    gpu = gpu_of(device);
    /* A handle to a card that has been taken away answers as a lost one. */
    bool lost = !gpu || gpu->number[N_lost];
    pthread_mutex_unlock(&lock);
    return lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t standin_field_fault(unsigned id, nvmlDevice_t device) {
    char name[32];
    snprintf(name, sizeof name, "field_%u", id);
    nvmlReturn_t code = NVML_SUCCESS;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < fault_count; i++)
        if (strcmp(faults[i].function, name) == 0 && faults[i].action == FAULT_ERROR &&
            (strcmp(faults[i].uuid, "*") == 0 || strcmp(faults[i].uuid, device->uuid) == 0))
            code = (nvmlReturn_t)faults[i].value;
    pthread_mutex_unlock(&lock);
    return code;
}

bool standin_ignores(const char *function, nvmlDevice_t device) {
    pthread_mutex_lock(&lock);
    bool ignored = matching_fault(function, device, true).action == FAULT_IGNORE;
    pthread_mutex_unlock(&lock);
    return ignored;
}

/* DIR/clients/PID is there while a process holds the driver: what a reset of a card has to look at. */
static bool client_path(char *out, size_t size) {
    char file[32];
    snprintf(file, sizeof file, "clients/%d", (int)getpid());
    return standin_path(file, out, size);
}

static void enter_clients(void) {
    char path[4096];
    if (!standin_path("clients", path, sizeof path))
        return;
    mkdir(path, 0755);
    int fd = client_path(path, sizeof path) ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0)
        close(fd);
}

static void leave_clients(void) {
    char path[4096];
    if (client_path(path, sizeof path))
        unlink(path);
}

/* A process that ends lets go of the driver, whether it says so or not. */
__attribute__((destructor)) static void end_of_process(void) {
    leave_clients();
}

nvmlReturn_t standin_init(void) {
    pthread_mutex_lock(&lock);
    refresh_all();
    bool there = state_stamp.there;
    if (there && users++ == 0)
        enter_clients();
    pthread_mutex_unlock(&lock);
    return there ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
}

nvmlReturn_t standin_shutdown(void) {
    pthread_mutex_lock(&lock);
    bool ready = users > 0;
    users -= ready;
    if (ready && users == 0)
        leave_clients();
    pthread_mutex_unlock(&lock);
    return ready ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t standin_number(nvmlDevice_t device, number_key key, long long *value) {
    pthread_mutex_lock(&lock);
    gpu_t *gpu = gpu_of(device);
    nvmlReturn_t code = !gpu ? NVML_ERROR_GPU_IS_LOST : NVML_ERROR_NOT_SUPPORTED;
    if (gpu && gpu->has[key]) {
        *value = gpu->number[key];
        code = NVML_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_text(nvmlDevice_t device, text_key key, char *out, unsigned size) {
    pthread_mutex_lock(&lock);
    gpu_t *gpu = gpu_of(device);
    nvmlReturn_t code = !gpu ? NVML_ERROR_GPU_IS_LOST : NVML_ERROR_NOT_SUPPORTED;
    if (gpu && gpu->text[key][0])
        code = (unsigned)snprintf(out, size, "%s", gpu->text[key]) < size
                   ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_rows(nvmlDevice_t device, const char *key, row_t **rows, unsigned *count) {
    pthread_mutex_lock(&lock);
    gpu_t *gpu = gpu_of(device);
    *rows = NULL;
    *count = 0;
    nvmlReturn_t code = gpu ? rows_copy(gpu, key, rows, count) : NVML_ERROR_GPU_IS_LOST;
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlDevice_t standin_mig_handle(nvmlDevice_t device, unsigned index) {
    if (device->mig >= 0)
        return NULL;
    pthread_mutex_lock(&lock);
    nvmlDevice_t mig = &mig_handles[device - handles][index];
    snprintf(mig->uuid, TEXT_SIZE, "%s", device->uuid);
    mig->mig = (int)index;
    pthread_mutex_unlock(&lock);
    return mig;
}

nvmlReturn_t standin_count(unsigned *count) {
    pthread_mutex_lock(&lock);
    *count = 0;
    for (size_t i = 0; i < gpu_count; i++)
        *count += !gpus[i].number[N_absent];
    pthread_mutex_unlock(&lock);
    return NVML_SUCCESS;
}

nvmlReturn_t standin_by_index(unsigned index, nvmlDevice_t *device) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t code = NVML_ERROR_INVALID_ARGUMENT;
    unsigned seen = 0;
    for (size_t i = 0; i < gpu_count; i++)
        if (!gpus[i].number[N_absent] && seen++ == index) {
            *device = handle_for(gpus[i].uuid);
            code = NVML_SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_by_uuid(const char *uuid, nvmlDevice_t *device) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t code = NVML_ERROR_NOT_FOUND;
    for (size_t i = 0; i < gpu_count; i++)
        if (!gpus[i].number[N_absent] && strcmp(gpus[i].uuid, uuid) == 0) {
            *device = handle_for(uuid);
            code = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_by_pci(const char *pci, nvmlDevice_t *device) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t code = NVML_ERROR_NOT_FOUND;
    for (size_t i = 0; i < gpu_count; i++)
        if (!gpus[i].number[N_absent] && strcasecmp(gpus[i].text[T_pci], pci) == 0) {
            *device = handle_for(gpus[i].uuid);
            code = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_index(nvmlDevice_t device, unsigned *index) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t code = NVML_ERROR_GPU_IS_LOST;
    unsigned seen = 0;
    for (size_t i = 0; i < gpu_count; i++) {
        if (strcmp(gpus[i].uuid, device->uuid) == 0 && !gpus[i].number[N_absent]) {
            *index = seen;
            code = NVML_SUCCESS;
        }
        seen += !gpus[i].number[N_absent];
    }
    pthread_mutex_unlock(&lock);
    return code;
}

nvmlReturn_t standin_processes(nvmlDevice_t device, char kind, process_t *out, unsigned room,
                               unsigned *count) {
    pthread_mutex_lock(&lock);
    gpu_t *gpu = gpu_of(device);
    *count = 0;
    for (size_t i = 0; gpu && i < gpu->process_count; i++)
        if (gpu->processes[i].kind == kind) {
            if (*count < room)
                out[*count] = gpu->processes[i];
            (*count)++;
        }
    pthread_mutex_unlock(&lock);
    return gpu ? NVML_SUCCESS : NVML_ERROR_GPU_IS_LOST;
}

static bool limit_path(nvmlDevice_t device, char *out, size_t size) {
    char file[TEXT_SIZE + 16];
    snprintf(file, sizeof file, "power_limit.%s", device->uuid);
    return standin_path(file, out, size);
}

nvmlReturn_t standin_power_limit(nvmlDevice_t device, unsigned *milliwatts) {
    char path[4096];
    long long value;
    nvmlReturn_t code = standin_number(device, N_power_limit_default_mw, &value);
    char *content = code == NVML_SUCCESS && limit_path(device, path, sizeof path) ? read_file(path) : NULL;
    if (content)
        value = atoll(content);
    free(content);
    if (code == NVML_SUCCESS)
        *milliwatts = (unsigned)value;
    return code;
}

nvmlReturn_t standin_set_power_limit(nvmlDevice_t device, unsigned milliwatts) {
    char path[4096], fresh[4200];
    if (!limit_path(device, path, sizeof path))
        return NVML_ERROR_UNKNOWN;
    snprintf(fresh, sizeof fresh, "%s.%d", path, (int)gettid());
    FILE *file = fopen(fresh, "we");
    if (!file)
        return NVML_ERROR_NO_PERMISSION;
    bool written = fprintf(file, "%u\n", milliwatts) > 0;
    written = fclose(file) == 0 && written;
    return written && rename(fresh, path) == 0 ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

void standin_log_write(const char *function, nvmlDevice_t device, long long value,
                       nvmlReturn_t code, bool applied) {
    char path[4096], line[512];
    struct timespec now;
    if (!standin_path("writes", path, sizeof path))
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(line, sizeof line, "%lld.%06ld %d %s %s %lld %d %d\n",
                          (long long)now.tv_sec, now.tv_nsec / 1000, (int)getpid(), function,
                          device->uuid, value, (int)code, applied);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    /* One write call with O_APPEND: lines of several processes never mix. */
    if (write(fd, line, (size_t)length) != length)
        fprintf(stderr, "nvml stand-in: the write log is full\n");
    close(fd);
}
