/* Sample buffers, utilisation by process, NVLinks, PCIe and MIG of the stand-in. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* So many samples does a buffer hold that is filled by a period. */
enum { BUFFER_SIZE = 120 };

static unsigned long long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000;
}

/* ---- samples ---- */

typedef struct {
    nvmlSample_t *entries;
    unsigned count;
} buffer_t;

static void add_sample(buffer_t *buffer, unsigned long long since, unsigned long long at, unsigned value) {
    if (at > since)
        buffer->entries[buffer->count++] = (nvmlSample_t){.timeStamp = at, .sampleValue.uiVal = value};
}

/* With `sample_period_ms` a buffer is full of what the card says now; 0: there is one, and it is dry. */
static nvmlReturn_t fill(nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long since,
                         buffer_t *buffer) {
    row_t *rows;
    unsigned count;
    long long period = 0, value;
    TRY(standin_rows(device, "sample", &rows, &count));
    nvmlReturn_t code = standin_number(device, N_sample_period_ms, &period);
    if (count > 0)
        code = NVML_SUCCESS;
    buffer->entries = calloc(count + BUFFER_SIZE + 1U, sizeof *buffer->entries);
    if (code == NVML_SUCCESS && !buffer->entries)
        code = NVML_ERROR_MEMORY;
    for (unsigned i = 0; code == NVML_SUCCESS && i < count; i++)
        if (rows[i].n[0] == (long long)type)
            add_sample(buffer, since, (unsigned long long)rows[i].n[1], (unsigned)rows[i].n[2]);
    free(rows);
    if (code == NVML_SUCCESS && count == 0 && type != NVML_TOTAL_POWER_SAMPLES &&
        type != NVML_GPU_UTILIZATION_SAMPLES)
        code = NVML_ERROR_NOT_SUPPORTED;
    if (code != NVML_SUCCESS || count > 0 || period <= 0)
        return code;
    TRY(standin_number(device, type == NVML_TOTAL_POWER_SAMPLES ? N_power_mw : N_utilization, &value));
    unsigned long long step = (unsigned long long)period * 1000ULL, newest = now_us() / step;
    for (unsigned i = BUFFER_SIZE; i-- > 0;)
        add_sample(buffer, since, (newest - i) * step, (unsigned)value);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long since,
                                  nvmlValueType_t *value_type, unsigned int *count,
                                  nvmlSample_t *samples) {
    buffer_t buffer = {0};
    BEGIN(device);
    if (samples && *count == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t code = fill(device, type, since, &buffer);
    if (code == NVML_SUCCESS && buffer.count == 0)
        code = NVML_ERROR_NOT_FOUND;
    if (code == NVML_SUCCESS) {
        *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
        *count = samples && *count < buffer.count ? *count : buffer.count;
        for (unsigned i = 0; samples && i < *count; i++)
            samples[i] = buffer.entries[i];
    }
    free(buffer.entries);
    return code;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long since) {
    row_t *rows;
    unsigned told, room = samples ? *count : 0, running = 0, there = 0;
    BEGIN(device);
    TRY(standin_rows(device, "process_sample", &rows, &told));
    TRY(standin_processes(device, 'C', NULL, 0, &running));
    nvmlProcessUtilizationSample_t *found = calloc(told + running + 1U, sizeof *found);
    process_t *processes = calloc(running + 1U, sizeof *processes);
    nvmlReturn_t code = found && processes ? NVML_SUCCESS : NVML_ERROR_MEMORY;
    for (unsigned i = 0; code == NVML_SUCCESS && i < told; i++)
        if ((unsigned long long)rows[i].n[1] > since)
            found[there++] = (nvmlProcessUtilizationSample_t){.pid = (unsigned)rows[i].n[0],
                                                              .timeStamp = (unsigned long long)rows[i].n[1],
                                                              .smUtil = (unsigned)rows[i].n[2]};
    if (code == NVML_SUCCESS && told == 0)
        code = standin_processes(device, 'C', processes, running, &running);
    for (unsigned i = 0; code == NVML_SUCCESS && told == 0 && i < running; i++)
        found[there++] = (nvmlProcessUtilizationSample_t){
            .pid = processes[i].pid, .timeStamp = now_us(), .smUtil = processes[i].sm_utilization};
    *count = there;
    if (code == NVML_SUCCESS && there == 0)
        code = NVML_ERROR_NOT_FOUND;
    else if (code == NVML_SUCCESS && there > room)
        code = NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; code == NVML_SUCCESS && i < there; i++)
        samples[i] = found[i];
    free(rows);
    free(found);
    free(processes);
    return code;
}

/* ---- PCIe ---- */

NUMBER_GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, N_pcie_generation)
NUMBER_GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, N_pcie_width)
NUMBER_GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, N_pcie_generation_max)
NUMBER_GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, N_pcie_width_max)
NUMBER_GETTER(nvmlDeviceGetPcieReplayCounter, unsigned int, N_pcie_replays)

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter,
                                         unsigned int *kilobytes) {
    long long number;
    BEGIN(device);
    TRY(standin_number(device, counter == NVML_PCIE_UTIL_RX_BYTES ? N_pcie_rx_kb : N_pcie_tx_kb, &number));
    *kilobytes = (unsigned)number;
    return NVML_SUCCESS;
}

/* ---- NVLink ---- */

static nvmlReturn_t link_row(nvmlDevice_t device, unsigned link, row_t *out) {
    row_t *rows;
    unsigned count;
    TRY(standin_rows(device, "nvlink", &rows, &count));
    nvmlReturn_t code = count ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_SUPPORTED;
    for (unsigned i = 0; i < count; i++)
        if (rows[i].n[0] == (long long)link) {
            *out = rows[i];
            code = NVML_SUCCESS;
        }
    free(rows);
    return code;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active) {
    row_t row;
    BEGIN(device);
    TRY(link_row(device, link, &row));
    *active = row.n[1] ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

bool parts_field(nvmlDevice_t device, nvmlFieldValue_t *value) {
    static const struct { unsigned id; int column; } of_link[] = {
        {NVML_FI_DEV_NVLINK_GET_STATE, 1}, {NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY, 2},
        {NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY, 3}, {NVML_FI_DEV_NVLINK_ERROR_DL_CRC, 4},
    };
    row_t row, *rows;
    unsigned count;
    if (value->fieldId == NVML_FI_DEV_NVLINK_LINK_COUNT) {
        value->nvmlReturn = standin_rows(device, "nvlink", &rows, &count);
        value->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        value->value.uiVal = count;
        free(rows);
        return true;
    }
    for (size_t i = 0; i < sizeof of_link / sizeof *of_link; i++)
        if (of_link[i].id == value->fieldId) {
            value->nvmlReturn = link_row(device, value->scopeId, &row);
            value->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            if (value->nvmlReturn == NVML_SUCCESS)
                value->value.ullVal = (unsigned long long)row.n[of_link[i].column];
            return true;
        }
    return false;
}

/* ---- MIG ---- */

nvmlReturn_t parts_mig_row(nvmlDevice_t device, row_t *out) {
    row_t *rows;
    unsigned count;
    TRY(standin_rows(device, "mig", &rows, &count));
    nvmlReturn_t code = NVML_ERROR_NOT_FOUND;
    for (unsigned i = 0; i < count; i++)
        if (rows[i].n[0] == device->mig) {
            *out = rows[i];
            code = NVML_SUCCESS;
        }
    free(rows);
    return code;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    long long now, next;
    BEGIN(device);
    TRY(standin_number(device, N_mig_current, &now));
    next = now;
    standin_number(device, N_mig_pending, &next);
    *current = (unsigned)now;
    *pending = (unsigned)next;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    long long now;
    BEGIN(device);
    *count = standin_number(device, N_mig_current, &now) == NVML_SUCCESS ? MAX_MIG : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig) {
    row_t row;
    long long now;
    BEGIN(device);
    TRY(standin_number(device, N_mig_current, &now));
    if (index >= MAX_MIG)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlDevice_t found = standin_mig_handle(device, index);
    TRY(found ? parts_mig_row(found, &row) : NVML_ERROR_NOT_FOUND);
    *mig = found;
    return NVML_SUCCESS;
}

#define MIG_GETTER(function, column)                                                               \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *id) {                                 \
        row_t row;                                                                                 \
        BEGIN(device);                                                                             \
        if (device->mig < 0)                                                                       \
            return NVML_ERROR_NOT_SUPPORTED;                                                       \
        TRY(parts_mig_row(device, &row));                                                          \
        *id = (unsigned)row.n[column];                                                             \
        return NVML_SUCCESS;                                                                       \
    }

MIG_GETTER(nvmlDeviceGetGpuInstanceId, 1)
MIG_GETTER(nvmlDeviceGetComputeInstanceId, 2)

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig) {
    BEGIN(device);
    *is_mig = device->mig >= 0;
    return NVML_SUCCESS;
}
