/* The stand-in driver's state: files in $NVML_STANDIN_DIR, parsed only when they change. */
#ifndef NVML_STANDIN_STATE_H
#define NVML_STANDIN_STATE_H

#include <stdbool.h>
#include <stddef.h>

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#define NUMBERS(X)                                                                                 \
    X(lost) X(absent) X(latency_ms)                                                                \
    X(temperature) X(memory_temperature) X(slowdown_temperature) X(shutdown_temperature)           \
    X(memory_total) X(memory_reserved) X(memory_used)                                              \
    X(utilization) X(memory_utilization) X(encoder_utilization) X(decoder_utilization)             \
    X(power_mw) X(power_limit_default_mw) X(power_limit_min_mw) X(power_limit_max_mw)              \
    X(energy_mj) X(fan) X(pstate) X(clock_events)                                                  \
    X(clock_graphics) X(clock_sm) X(clock_memory) X(clock_video)                                   \
    X(clock_max_graphics) X(clock_max_sm) X(clock_max_memory) X(clock_max_video)                   \
    X(ecc_corrected) X(ecc_uncorrected)                                                            \
    X(ecc_dram_corrected) X(ecc_dram_uncorrected) X(ecc_sram_corrected) X(ecc_sram_uncorrected)    \
    X(retired_single_bit) X(retired_double_bit) X(retired_pending)                                 \
    X(remapped_correctable) X(remapped_uncorrectable) X(remapped_pending) X(remapped_failure)      \
    X(power_cap_ns) X(thermal_ns) X(sync_boost_ns) X(sw_thermal_ns) X(hw_thermal_ns) X(hw_brake_ns) \
    X(recovery_action)                                                                             \
    X(pcie_generation) X(pcie_width) X(pcie_generation_max) X(pcie_width_max) X(pcie_replays)      \
    X(pcie_rx_kb) X(pcie_tx_kb) X(nvlink_rx_kib) X(nvlink_tx_kib)                                  \
    X(sample_period_ms) X(mig_current) X(mig_pending)

#define TEXTS(X) X(name) X(pci) X(vbios) X(serial)

typedef enum {
#define X(key) N_##key,
    NUMBERS(X)
#undef X
    N_COUNT
} number_key;

typedef enum {
#define X(key) T_##key,
    TEXTS(X)
#undef X
    T_COUNT
} text_key;

enum { TEXT_SIZE = 96, MAX_GPUS = 64, MAX_MIG = 8, ROW_VALUES = 6 };

#define TRY(call)                                                                                  \
    do {                                                                                           \
        nvmlReturn_t code_ = (call);                                                               \
        if (code_ != NVML_SUCCESS)                                                                 \
            return code_;                                                                          \
    } while (0)

#define BEGIN(device)                                                                              \
    do {                                                                                           \
        if (!(device))                                                                             \
            return NVML_ERROR_INVALID_ARGUMENT;                                                    \
        TRY(standin_enter(__func__, device));                                                      \
    } while (0)

#define NUMBER_GETTER(function, type, key)                                                         \
    nvmlReturn_t function(nvmlDevice_t device, type *value) {                                      \
        long long number;                                                                          \
        BEGIN(device);                                                                             \
        TRY(standin_number(device, key, &number));                                                 \
        *value = (type)number;                                                                     \
        return NVML_SUCCESS;                                                                       \
    }

typedef struct {
    unsigned pid;
    unsigned long long memory;
    char kind;
    unsigned sm_utilization;
} process_t;

typedef struct {
    char key[16];
    long long n[ROW_VALUES];
} row_t;

typedef struct {
    char uuid[TEXT_SIZE];
    bool has[N_COUNT];
    long long number[N_COUNT];
    char text[T_COUNT][TEXT_SIZE];
    process_t *processes;
    size_t process_count;
    row_t *rows;
    size_t row_count;
} gpu_t;

/* A handle stays valid for a card as long as the library is loaded, as its uuid does. That of a MIG
 * device has the uuid of its card, whose faults are its own. */
struct nvmlDevice_st {
    char uuid[TEXT_SIZE];
    int mig;
};

/* The path of one file of the state; false when there is no directory or no room. */
bool standin_path(const char *file, char *out, size_t size);

nvmlReturn_t standin_init(void);
nvmlReturn_t standin_shutdown(void);

/* Every function starts here: applies faults (error, latency, hang) and refuses what is lost. */
nvmlReturn_t standin_enter(const char *function, nvmlDevice_t device);

/* What a fault on `field_<id>` says of one field of a batch; success without such a fault. */
nvmlReturn_t standin_field_fault(unsigned id, nvmlDevice_t device);

/* Whether a write is to be taken for success without having an effect. */
bool standin_ignores(const char *function, nvmlDevice_t device);

bool rows_know(const char *key);
void rows_add(gpu_t *gpu, const char *key, const char *line);
nvmlReturn_t rows_copy(const gpu_t *gpu, const char *key, row_t **out, unsigned *count);

/* The rows of a card under one key, for the caller to free. */
nvmlReturn_t standin_rows(nvmlDevice_t device, const char *key, row_t **rows, unsigned *count);

/* A field of links; false when it is none. */
bool parts_field(nvmlDevice_t device, nvmlFieldValue_t *value);
nvmlReturn_t parts_mig_row(nvmlDevice_t device, row_t *row);
nvmlDevice_t standin_mig_handle(nvmlDevice_t device, unsigned index);

nvmlReturn_t standin_number(nvmlDevice_t device, number_key key, long long *value);
nvmlReturn_t standin_text(nvmlDevice_t device, text_key key, char *out, unsigned size);
nvmlReturn_t standin_count(unsigned *count);
nvmlReturn_t standin_by_index(unsigned index, nvmlDevice_t *device);
nvmlReturn_t standin_by_uuid(const char *uuid, nvmlDevice_t *device);
nvmlReturn_t standin_by_pci(const char *pci, nvmlDevice_t *device);
nvmlReturn_t standin_index(nvmlDevice_t device, unsigned *index);

/* Copies at most `room` processes of one kind; *count is how many there are. */
nvmlReturn_t standin_processes(nvmlDevice_t device, char kind, process_t *out, unsigned room,
                               unsigned *count);

/* The power limit in milliwatts that holds for every process. */
nvmlReturn_t standin_power_limit(nvmlDevice_t device, unsigned *milliwatts);
nvmlReturn_t standin_set_power_limit(nvmlDevice_t device, unsigned milliwatts);
void standin_log_write(const char *function, nvmlDevice_t device, long long value,
                       nvmlReturn_t code, bool applied);

#endif
