/* What a card has several of: lines `KEY NUMBER...` in its section of the state. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* sample          TYPE TIMESTAMP VALUE           one entry of a sample buffer (nvmlSamplingType_t)
 * process_sample  PID TIMESTAMP SM               one entry of nvmlDeviceGetProcessUtilization
 * nvlink          LINK STATE REPLAY RECOVERY CRC
 * mig             INDEX GI CI TOTAL USED SLICES  a MIG device, its memory in bytes */
static const char *const row_keys[] = {"sample", "process_sample", "nvlink", "mig"};

bool rows_know(const char *key) {
    for (size_t i = 0; i < sizeof row_keys / sizeof *row_keys; i++)
        if (strcmp(key, row_keys[i]) == 0)
            return true;
    return false;
}

void rows_add(gpu_t *gpu, const char *key, const char *line) {
    row_t one = {.n = {0}};
    snprintf(one.key, sizeof one.key, "%s", key);
    if (sscanf(line, "%lld %lld %lld %lld %lld %lld", &one.n[0], &one.n[1], &one.n[2], &one.n[3],
               &one.n[4], &one.n[5]) < 1)
        return;
    row_t *bigger = realloc(gpu->rows, (gpu->row_count + 1) * sizeof one);
    if (!bigger)
        return;
    gpu->rows = bigger;
    gpu->rows[gpu->row_count++] = one;
}

nvmlReturn_t rows_copy(const gpu_t *gpu, const char *key, row_t **out, unsigned *count) {
    *count = 0;
    *out = calloc(gpu->row_count + 1, sizeof **out);
    if (!*out)
        return NVML_ERROR_MEMORY;
    for (size_t i = 0; i < gpu->row_count; i++)
        if (strcmp(gpu->rows[i].key, key) == 0)
            (*out)[(*count)++] = gpu->rows[i];
    return NVML_SUCCESS;
}
