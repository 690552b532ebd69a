/* A stand-in for libnvidia-ml.so.1 on machines without a GPU. Never mistake it for a driver: its
 * driver version says "standin". What a card's state does not hold is NVML_ERROR_NOT_SUPPORTED. */
#define _GNU_SOURCE
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DRIVER_VERSION "580.95.05-standin"
#define NVML_LIBRARY_VERSION "13.580.95.05-standin"
#define CUDA_DRIVER_VERSION 13000

static nvmlReturn_t copy_text(const char *text, char *out, unsigned size) {
    return (unsigned)snprintf(out, size, "%s", text) < size ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static unsigned long long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000;
}

/* ---- library ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    TRY(standin_enter("nvmlInit", NULL));
    return standin_init();
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    TRY(standin_enter(__func__, NULL));
    return standin_shutdown();
}

const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case NVML_SUCCESS: return "The operation was successful";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    TRY(standin_enter(__func__, NULL));
    return copy_text(DRIVER_VERSION, version, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    TRY(standin_enter(__func__, NULL));
    return copy_text(NVML_LIBRARY_VERSION, version, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    TRY(standin_enter(__func__, NULL));
    *version = CUDA_DRIVER_VERSION;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return nvmlSystemGetCudaDriverVersion(version);
}

/* ---- cards ---- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    TRY(standin_enter(__func__, NULL));
    return standin_count(count);
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    nvmlDevice_t found = NULL;
    TRY(standin_enter("nvmlDeviceGetHandle", NULL));
    TRY(standin_by_index(index, &found));
    TRY(standin_enter(__func__, found));
    *device = found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    nvmlDevice_t found = NULL;
    TRY(standin_enter("nvmlDeviceGetHandle", NULL));
    TRY(standin_by_uuid(uuid, &found));
    TRY(standin_enter(__func__, found));
    *device = found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, nvmlDevice_t *device) {
    nvmlDevice_t found = NULL;
    TRY(standin_enter("nvmlDeviceGetHandle", NULL));
    TRY(standin_by_pci(pci, &found));
    TRY(standin_enter(__func__, found));
    *device = found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    BEGIN(device);
    return standin_index(device, index);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    BEGIN(device);
    return standin_index(device, minor);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    char text[TEXT_SIZE];
    BEGIN(device);
    if (device->mig < 0)
        return copy_text(device->uuid, uuid, length);
    /* GPU-...00 becomes MIG-...0N. */
    snprintf(text, sizeof text, "MIG%.*s%02x", (int)strlen(device->uuid) - 5, device->uuid + 3, device->mig);
    return copy_text(text, uuid, length);
}

#define TEXT_GETTER(function, key)                                                                 \
    nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int length) {                  \
        BEGIN(device);                                                                             \
        return standin_text(device, key, text, length);                                            \
    }

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
    char name[TEXT_SIZE + 32];
    row_t row;
    BEGIN(device);
    if (device->mig < 0)
        return standin_text(device, T_name, text, length);
    TRY(standin_text(device, T_name, name, TEXT_SIZE));
    TRY(parts_mig_row(device, &row));
    snprintf(name + strlen(name), 32, " MIG %lldg.%lldgb", row.n[5], row.n[3] >> 30);
    return copy_text(name, text, length);
}

TEXT_GETTER(nvmlDeviceGetSerial, T_serial)
TEXT_GETTER(nvmlDeviceGetVbiosVersion, T_vbios)

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    char text[TEXT_SIZE];
    BEGIN(device);
    TRY(standin_text(device, T_pci, text, sizeof text));
    memset(pci, 0, sizeof *pci);
    snprintf(pci->busId, sizeof pci->busId, "%.31s", text);
    if (sscanf(text, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
        return NVML_ERROR_UNKNOWN;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffffU,
             pci->bus & 0xffU, pci->device & 0xffU);
    pci->pciDeviceId = 0x20B010DE;
    return NVML_SUCCESS;
}

/* ---- readings that are one number ---- */

NUMBER_GETTER(nvmlDeviceGetPowerUsage, unsigned int, N_power_mw)
NUMBER_GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, N_power_limit_default_mw)
NUMBER_GETTER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, N_energy_mj)
NUMBER_GETTER(nvmlDeviceGetFanSpeed, unsigned int, N_fan)
NUMBER_GETTER(nvmlDeviceGetPerformanceState, nvmlPstates_t, N_pstate)
NUMBER_GETTER(nvmlDeviceGetPowerState, nvmlPstates_t, N_pstate)
NUMBER_GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, N_clock_events)
NUMBER_GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, N_clock_events)

nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *count) {
    long long number;
    BEGIN(device);
    *count = standin_number(device, N_fan, &number) == NVML_SUCCESS;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned int fan, unsigned int *speed) {
    long long number;
    BEGIN(device);
    TRY(standin_number(device, N_fan, &number));
    if (fan > 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *speed = (unsigned)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    long long number;
    BEGIN(device);
    if (temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    TRY(standin_number(device, N_temperature, &number));
    temperature->temperature = (int)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor,
                                      unsigned int *temperature) {
    long long number;
    BEGIN(device);
    if (sensor != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    TRY(standin_number(device, N_temperature, &number));
    *temperature = (unsigned)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device,
                                               nvmlTemperatureThresholds_t threshold,
                                               unsigned int *temperature) {
    long long number;
    BEGIN(device);
    if (threshold != NVML_TEMPERATURE_THRESHOLD_SHUTDOWN &&
        threshold != NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        return NVML_ERROR_NOT_SUPPORTED;
    TRY(standin_number(device,
                       threshold == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN ? N_shutdown_temperature
                                                                        : N_slowdown_temperature,
                       &number));
    *temperature = (unsigned)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *margin) {
    long long slowdown, temperature;
    BEGIN(device);
    if (margin->version != nvmlMarginTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    TRY(standin_number(device, N_slowdown_temperature, &slowdown));
    TRY(standin_number(device, N_temperature, &temperature));
    margin->marginTemperature = (int)(slowdown - temperature);
    return NVML_SUCCESS;
}

/* ---- memory, utilisation, clocks ---- */

static nvmlReturn_t memory(nvmlDevice_t device, long long *total, long long *reserved, long long *used) {
    row_t row;
    *reserved = 0;
    if (device->mig >= 0) {
        TRY(parts_mig_row(device, &row));
        *total = row.n[3];
        *used = row.n[4];
        return NVML_SUCCESS;
    }
    TRY(standin_number(device, N_memory_total, total));
    TRY(standin_number(device, N_memory_used, used));
    standin_number(device, N_memory_reserved, reserved);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *info) {
    long long total, reserved, used;
    BEGIN(device);
    if (info->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    TRY(memory(device, &total, &reserved, &used));
    info->total = (unsigned long long)total;
    info->reserved = (unsigned long long)reserved;
    info->used = (unsigned long long)used;
    info->free = (unsigned long long)(total - reserved - used);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *info) {
    long long total, reserved, used;
    BEGIN(device);
    TRY(memory(device, &total, &reserved, &used));
    info->total = (unsigned long long)total;
    info->used = (unsigned long long)(used + reserved);
    info->free = (unsigned long long)(total - reserved - used);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *info) {
    long long total;
    BEGIN(device);
    TRY(standin_number(device, N_memory_total, &total));
    info->bar1Total = (unsigned long long)total;
    info->bar1Used = 0;
    info->bar1Free = (unsigned long long)total;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    long long gpu, memory_share = 0;
    BEGIN(device);
    TRY(standin_number(device, N_utilization, &gpu));
    standin_number(device, N_memory_utilization, &memory_share);
    rates->gpu = (unsigned)gpu;
    rates->memory = (unsigned)memory_share;
    return NVML_SUCCESS;
}

#define CODEC_GETTER(function, key)                                                                \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *share, unsigned int *period_us) {     \
        long long number;                                                                          \
        BEGIN(device);                                                                             \
        TRY(standin_number(device, key, &number));                                                 \
        *share = (unsigned)number;                                                                 \
        *period_us = 167000;                                                                       \
        return NVML_SUCCESS;                                                                       \
    }

CODEC_GETTER(nvmlDeviceGetEncoderUtilization, N_encoder_utilization)
CODEC_GETTER(nvmlDeviceGetDecoderUtilization, N_decoder_utilization)

static nvmlReturn_t clock_of(nvmlDevice_t device, nvmlClockType_t type, number_key first, unsigned *mhz) {
    long long number;
    /* The keys follow the order of nvmlClockType_t: graphics, SM, memory, video. */
    if ((unsigned)type > NVML_CLOCK_VIDEO)
        return NVML_ERROR_INVALID_ARGUMENT;
    TRY(standin_number(device, first + type, &number));
    *mhz = (unsigned)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz) {
    BEGIN(device);
    return clock_of(device, type, N_clock_graphics, mhz);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz) {
    BEGIN(device);
    return clock_of(device, type, N_clock_max_graphics, mhz);
}

/* ---- power limit ---- */

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    BEGIN(device);
    return standin_power_limit(device, milliwatts);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    BEGIN(device);
    return standin_power_limit(device, milliwatts);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least,
                                                          unsigned int *most) {
    long long low, high;
    BEGIN(device);
    TRY(standin_number(device, N_power_limit_min_mw, &low));
    TRY(standin_number(device, N_power_limit_max_mw, &high));
    *least = (unsigned)low;
    *most = (unsigned)high;
    return NVML_SUCCESS;
}

static nvmlReturn_t set_limit(const char *function, nvmlDevice_t device, unsigned milliwatts,
                              bool *applied) {
    long long low, high;
    TRY(standin_enter(function, device));
    TRY(standin_number(device, N_power_limit_min_mw, &low));
    TRY(standin_number(device, N_power_limit_max_mw, &high));
    if (milliwatts < low || milliwatts > high)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (standin_ignores(function, device))
        return NVML_SUCCESS;
    TRY(standin_set_power_limit(device, milliwatts));
    *applied = true;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int milliwatts) {
    bool applied = false;
    if (!device)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t code = set_limit(__func__, device, milliwatts, &applied);
    standin_log_write(__func__, device, milliwatts, code, applied);
    return code;
}

/* ---- processes ---- */

static nvmlReturn_t processes(nvmlDevice_t device, char kind, unsigned *count, nvmlProcessInfo_t *out) {
    unsigned room = out ? *count : 0, there = 0;
    process_t *found = calloc(room + 1U, sizeof *found);
    if (!found)
        return NVML_ERROR_MEMORY;
    nvmlReturn_t code = standin_processes(device, kind, found, room, &there);
    *count = there;
    if (code == NVML_SUCCESS && there > room)
        code = NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; code == NVML_SUCCESS && i < there; i++)
        out[i] = (nvmlProcessInfo_t){.pid = found[i].pid,
                                     .usedGpuMemory = found[i].memory,
                                     .gpuInstanceId = 0xFFFFFFFF,
                                     .computeInstanceId = 0xFFFFFFFF};
    free(found);
    return code;
}

#define PROCESS_GETTER(function, kind)                                                             \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {    \
        BEGIN(device);                                                                             \
        return processes(device, kind, count, infos);                                              \
    }

PROCESS_GETTER(nvmlDeviceGetComputeRunningProcesses_v3, 'C')
PROCESS_GETTER(nvmlDeviceGetGraphicsRunningProcesses_v3, 'G')
PROCESS_GETTER(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'M')

/* ---- health ---- */

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                         nvmlEccCounterType_t counter, unsigned long long *count) {
    long long number;
    (void)counter;
    BEGIN(device);
    TRY(standin_number(device,
                       type == NVML_MEMORY_ERROR_TYPE_CORRECTED ? N_ecc_corrected : N_ecc_uncorrected,
                       &number));
    *count = (unsigned long long)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                             nvmlEccCounterType_t counter,
                                             nvmlMemoryLocation_t location, unsigned long long *count) {
    static const number_key keys[2][2] = {{N_ecc_dram_corrected, N_ecc_dram_uncorrected},
                                          {N_ecc_sram_corrected, N_ecc_sram_uncorrected}};
    long long number;
    (void)counter;
    BEGIN(device);
    if (type > NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (location != NVML_MEMORY_LOCATION_DRAM && location != NVML_MEMORY_LOCATION_SRAM)
        return NVML_ERROR_NOT_SUPPORTED;
    TRY(standin_number(device, keys[location == NVML_MEMORY_LOCATION_SRAM][type], &number));
    *count = (unsigned long long)number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *correctable,
                                       unsigned int *uncorrectable, unsigned int *pending,
                                       unsigned int *failure) {
    unsigned int *const out[] = {correctable, uncorrectable, pending, failure};
    BEGIN(device);
    for (unsigned i = 0; i < 4; i++) {
        long long number;
        TRY(standin_number(device, N_remapped_correctable + i, &number));
        *out[i] = (unsigned)number;
    }
    return NVML_SUCCESS;
}

static const struct {
    unsigned id;
    nvmlValueType_t type;
    number_key key;
} fields[] = {
    {NVML_FI_DEV_MEMORY_TEMP, NVML_VALUE_TYPE_UNSIGNED_INT, N_memory_temperature},
    {NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_energy_mj},
    {NVML_FI_DEV_POWER_AVERAGE, NVML_VALUE_TYPE_UNSIGNED_INT, N_power_mw},
    {NVML_FI_DEV_POWER_INSTANT, NVML_VALUE_TYPE_UNSIGNED_INT, N_power_mw},
    {NVML_FI_DEV_ECC_SBE_VOL_TOTAL, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_ecc_corrected},
    {NVML_FI_DEV_ECC_DBE_VOL_TOTAL, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_ecc_uncorrected},
    {NVML_FI_DEV_RETIRED_SBE, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_retired_single_bit},
    {NVML_FI_DEV_RETIRED_DBE, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_retired_double_bit},
    {NVML_FI_DEV_RETIRED_PENDING, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_retired_pending},
    {NVML_FI_DEV_REMAPPED_COR, NVML_VALUE_TYPE_UNSIGNED_INT, N_remapped_correctable},
    {NVML_FI_DEV_REMAPPED_UNC, NVML_VALUE_TYPE_UNSIGNED_INT, N_remapped_uncorrectable},
    {NVML_FI_DEV_REMAPPED_PENDING, NVML_VALUE_TYPE_UNSIGNED_INT, N_remapped_pending},
    {NVML_FI_DEV_REMAPPED_FAILURE, NVML_VALUE_TYPE_UNSIGNED_INT, N_remapped_failure},
    {NVML_FI_DEV_PERF_POLICY_POWER, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_power_cap_ns},
    {NVML_FI_DEV_PERF_POLICY_THERMAL, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_thermal_ns},
    {NVML_FI_DEV_PERF_POLICY_SYNC_BOOST, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_sync_boost_ns},
    {NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
     N_sw_thermal_ns},
    {NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
     N_hw_thermal_ns},
    {NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
     N_hw_brake_ns},
    {NVML_FI_DEV_PCIE_REPLAY_COUNTER, NVML_VALUE_TYPE_UNSIGNED_INT, N_pcie_replays},
    {NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_nvlink_tx_kib},
    {NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, N_nvlink_rx_kib},
    {NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_VALUE_TYPE_UNSIGNED_INT, N_recovery_action},
};

static void read_field(nvmlDevice_t device, nvmlFieldValue_t *value) {
    long long number;
    value->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    value->timestamp = (long long)now_us();
    if (standin_field_fault(value->fieldId, device) != NVML_SUCCESS) {
        value->nvmlReturn = standin_field_fault(value->fieldId, device);
        return;
    }
    if (parts_field(device, value))
        return;
    for (unsigned i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].id != value->fieldId)
            continue;
        value->nvmlReturn = standin_number(device, fields[i].key, &number);
        value->valueType = fields[i].type;
        if (value->nvmlReturn == NVML_SUCCESS && fields[i].type == NVML_VALUE_TYPE_UNSIGNED_INT)
            value->value.uiVal = (unsigned)number;
        else if (value->nvmlReturn == NVML_SUCCESS)
            value->value.ullVal = (unsigned long long)number;
        return;
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    BEGIN(device);
    for (int i = 0; i < count; i++)
        read_field(device, &values[i]);
    return NVML_SUCCESS;
}

/* ---- what every card of the stand-in has in common ---- */

#define CONSTANT(function, type, constant)                                                         \
    nvmlReturn_t function(nvmlDevice_t device, type *value) {                                      \
        BEGIN(device);                                                                             \
        *value = (type)(constant);                                                                 \
        return NVML_SUCCESS;                                                                       \
    }

CONSTANT(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
CONSTANT(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT)
CONSTANT(nvmlDeviceGetDisplayMode, nvmlEnableState_t, NVML_FEATURE_DISABLED)
CONSTANT(nvmlDeviceGetDisplayActive, nvmlEnableState_t, NVML_FEATURE_DISABLED)

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    BEGIN(device);
    *major = 8;
    *minor = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *current,
                                         nvmlDriverModel_t *pending) {
    BEGIN(device);
    (void)current;
    (void)pending;
    return NVML_ERROR_NOT_SUPPORTED;
}
