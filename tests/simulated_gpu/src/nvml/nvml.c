/* NVML: which cards there are, what processes hold on them, clocks, slowdowns, power and energy.
 *
 * Only this process is listed, and one more where SIMULATED_CUDA_OTHER_BYTES says that it holds
 * memory. SIMULATED_CUDA_FAIL makes any of these functions unreadable:
 * nvmlDeviceGetTotalEnergyConsumption=3. Layouts and numbers: nvml.h. */
#include "layouts.h"
#include "../model/model.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
  NVML_SUCCESS = 0,
  NVML_INVALID_ARGUMENT = 2,
  NVML_NOT_SUPPORTED = 3,
  NVML_NOT_FOUND = 6,
  NVML_INSUFFICIENT_SIZE = 7
};

#define OTHER_PID 1       /* of the process that holds SIMULATED_CUDA_OTHER_BYTES */
#define ENERGY_TICK_MS 50 /* how often the counter of energy moves */
#define MEMORY_CLOCK_MHZ 2619

typedef struct {
  int index;
} Card;
static Card cards[SIM_MAX_DEVICES] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};

/* Every function begins so: with the failure that a test asks for. */
#define MAY_FAIL                        \
  do {                                  \
    int code_ = sim_injected(__func__); \
    if (code_) return code_;            \
  } while (0)

/* ---- the library ---- */

int nvmlInitWithFlags(unsigned flags) {
  UNUSED(flags);
  MAY_FAIL;
  return NVML_SUCCESS;
}

int nvmlInit_v2(void) {
  MAY_FAIL;
  return NVML_SUCCESS;
}

int nvmlInit(void) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return NVML_SUCCESS; }

const char *nvmlErrorString(int code) {
  static const struct {
    int code;
    const char *text;
  } texts[] = {
      {NVML_SUCCESS, "Success"},
      {1, "Uninitialized"},
      {NVML_INVALID_ARGUMENT, "Invalid Argument"},
      {NVML_NOT_SUPPORTED, "Not Supported"},
      {4, "Insufficient Permissions"},
      {NVML_NOT_FOUND, "Not Found"},
      {NVML_INSUFFICIENT_SIZE, "Insufficient Size"},
      {9, "Driver Not Loaded"},
      {13, "Function Not Found"},
      {15, "GPU is lost"},
      {18, "Driver/library version mismatch"},
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (texts[i].code == code) return texts[i].text;
  return "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
  MAY_FAIL;
  snprintf(text, length, "580.00.00");
  return NVML_SUCCESS;
}

int nvmlSystemGetNVMLVersion(char *text, unsigned length) {
  MAY_FAIL;
  snprintf(text, length, "13.580.00.00");
  return NVML_SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  MAY_FAIL;
  *version = CUDA_VERSION;
  return NVML_SUCCESS;
}

/* ---- which cards there are; CUDA_VISIBLE_DEVICES hides none of them ---- */

int nvmlDeviceGetCount_v2(unsigned *count) {
  MAY_FAIL;
  *count = (unsigned)sim_physical_count();
  return NVML_SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **card) {
  MAY_FAIL;
  if (index >= (unsigned)sim_physical_count()) return NVML_INVALID_ARGUMENT;
  *card = &cards[index];
  return NVML_SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Card **card) {
  MAY_FAIL;
  for (int i = 0; i < sim_physical_count(); i++) {
    char text[41];
    sim_uuid_text(i, text);
    if (strcmp(text, uuid)) continue;
    *card = &cards[i];
    return NVML_SUCCESS;
  }
  return NVML_NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, Card **card) {
  MAY_FAIL;
  unsigned domain, bus, slot;
  if (sscanf(address, "%x:%x:%x", &domain, &bus, &slot) != 3) return NVML_INVALID_ARGUMENT;
  for (int i = 0; i < sim_physical_count(); i++) {
    if (domain || slot || (int)bus != sim_pci_bus(i)) continue;
    *card = &cards[i];
    return NVML_SUCCESS;
  }
  return NVML_NOT_FOUND;
}

int nvmlDeviceGetUUID(const Card *card, char *text, unsigned length) {
  MAY_FAIL;
  char uuid[41];
  sim_uuid_text(card->index, uuid);
  return snprintf(text, length, "%s", uuid) < (int)length ? NVML_SUCCESS : NVML_INSUFFICIENT_SIZE;
}

int nvmlDeviceGetPciInfo_v3(const Card *card, PciInfo *info) {
  MAY_FAIL;
  *info = (PciInfo){.bus = (unsigned)sim_pci_bus(card->index)};
  snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", info->bus);
  snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", info->bus);
  return NVML_SUCCESS;
}

int nvmlDeviceGetIndex(const Card *card, unsigned *index) {
  MAY_FAIL;
  *index = (unsigned)card->index;
  return NVML_SUCCESS;
}

int nvmlDeviceGetMinorNumber(const Card *card, unsigned *minor) {
  return nvmlDeviceGetIndex(card, minor);
}

int nvmlDeviceGetName(const Card *card, char *text, unsigned length) {
  UNUSED(card);
  MAY_FAIL;
  snprintf(text, length, "Simulated GPU");
  return NVML_SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(const Card *card, int *major, int *minor) {
  UNUSED(card);
  MAY_FAIL;
  *major = sim_capability() / 10;
  *minor = sim_capability() % 10;
  return NVML_SUCCESS;
}

/* ---- memory ---- */

int nvmlDeviceGetMemoryInfo(const Card *card, Memory *memory) {
  MAY_FAIL;
  uint64_t used = sim_process_bytes(card->index) + sim_other_bytes();
  *memory = (Memory){.total = sim_card_bytes(), .free = sim_card_bytes() - used, .used = used};
  return NVML_SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(const Card *card, Memory2 *memory) {
  MAY_FAIL;
  uint64_t used = sim_process_bytes(card->index) + sim_other_bytes();
  unsigned version = memory->version;
  *memory = (Memory2){
      .version = version, .total = sim_card_bytes(), .free = sim_card_bytes() - used, .used = used};
  return NVML_SUCCESS;
}

/* SIMULATED_CUDA_PROCESSES: "listed", or "none" and "other-pid" as inside a container, or
 * "no-memory" as under a driver that keeps no account of it. */
static unsigned list_processes(const Card *card, ProcessInfo found[2]) {
  const char *how = sim_text("PROCESSES");
  uint64_t own = sim_process_bytes(card->index), other = sim_other_bytes();
  unsigned count = 0;
  if (own && strcmp(how, "none")) {
    unsigned pid = (unsigned)getpid();
    if (!strcmp(how, "other-pid")) pid += 1u << 22;  /* above any pid of Linux */
    if (!strcmp(how, "no-memory")) own = UINT64_MAX; /* NVML_VALUE_NOT_AVAILABLE */
    found[count++] = (ProcessInfo){pid, own, UINT32_MAX, UINT32_MAX};
  }
  if (other) found[count++] = (ProcessInfo){OTHER_PID, other, UINT32_MAX, UINT32_MAX};
  return count;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const Card *card, unsigned *count, ProcessInfo *infos) {
  MAY_FAIL;
  ProcessInfo found[2];
  unsigned room = *count;
  *count = list_processes(card, found);
  if (*count > room) return NVML_INSUFFICIENT_SIZE;
  if (*count) memcpy(infos, found, *count * sizeof *infos);
  return NVML_SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(const Card *card, unsigned *count, ProcessInfo *infos) {
  return nvmlDeviceGetComputeRunningProcesses_v3(card, count, infos);
}

int nvmlDeviceGetComputeRunningProcesses(const Card *card, unsigned *count, ProcessInfo1 *infos) {
  MAY_FAIL;
  ProcessInfo found[2];
  unsigned room = *count;
  *count = list_processes(card, found);
  if (*count > room) return NVML_INSUFFICIENT_SIZE;
  for (unsigned i = 0; i < *count; i++)
    infos[i] = (ProcessInfo1){found[i].pid, found[i].usedGpuMemory};
  return NVML_SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const Card *card, unsigned *count,
                                             ProcessInfo *infos) {
  UNUSED(card, infos);
  MAY_FAIL;
  *count = 0;
  return NVML_SUCCESS;
}

/* ---- clocks, and what lowers them ---- */

/* nvmlClockType_t: 0 graphics, 1 multiprocessors, 2 memory, 3 video */
int nvmlDeviceGetClockInfo(const Card *card, int which, unsigned *mhz) {
  UNUSED(card);
  MAY_FAIL;
  *mhz = which == 2 ? MEMORY_CLOCK_MHZ : (unsigned)sim_clock_mhz();
  return NVML_SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(const Card *card, int which, unsigned *mhz) {
  UNUSED(card);
  MAY_FAIL;
  *mhz = which == 2 ? MEMORY_CLOCK_MHZ
                    : (unsigned)sim_number("MAX_CLOCK_MHZ", (uint64_t)sim_clock_mhz());
  return NVML_SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(const Card *card, unsigned long long *bits) {
  UNUSED(card);
  MAY_FAIL;
  *bits = sim_number("CLOCKS_EVENT_REASONS", 0);
  return NVML_SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(const Card *card, unsigned long long *bits) {
  UNUSED(card);
  MAY_FAIL;
  *bits = sim_number("CLOCKS_EVENT_REASONS", 0);
  return NVML_SUCCESS;
}

int nvmlDeviceGetTemperature(const Card *card, int sensor, unsigned *degrees) {
  UNUSED(card, sensor);
  MAY_FAIL;
  *degrees = (unsigned)sim_number("TEMPERATURE", 40);
  return NVML_SUCCESS;
}

int nvmlDeviceGetPerformanceState(const Card *card, int *state) {
  UNUSED(card);
  MAY_FAIL;
  *state = 0;
  return NVML_SUCCESS;
}

int nvmlDeviceGetUtilizationRates(const Card *card, unsigned percents[2]) {
  UNUSED(card);
  MAY_FAIL;
  percents[0] = percents[1] = 0;
  return NVML_SUCCESS;
}

/* ---- power and energy: the same power all the time, so that energy is that times the time ---- */

int nvmlDeviceGetPowerUsage(const Card *card, unsigned *milliwatts) {
  UNUSED(card);
  MAY_FAIL;
  *milliwatts = (unsigned)sim_number("WATTS", 300) * 1000;
  return NVML_SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(const Card *card, unsigned long long *millijoules) {
  UNUSED(card);
  MAY_FAIL;
  uint64_t ticks = sim_now_ns() / (ENERGY_TICK_MS * 1000000ull);
  *millijoules = ticks * ENERGY_TICK_MS * sim_number("WATTS", 300); /* ms x W is mJ */
  return NVML_SUCCESS;
}

int nvmlDeviceGetPowerManagementLimit(const Card *card, unsigned *milliwatts) {
  UNUSED(card);
  MAY_FAIL;
  *milliwatts = (unsigned)sim_number("POWER_LIMIT_WATTS", 700) * 1000;
  return NVML_SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(const Card *card, unsigned *milliwatts) {
  return nvmlDeviceGetPowerManagementLimit(card, milliwatts);
}

int nvmlDeviceGetPowerManagementDefaultLimit(const Card *card, unsigned *milliwatts) {
  UNUSED(card);
  MAY_FAIL;
  *milliwatts = 700 * 1000;
  return NVML_SUCCESS;
}

/* ---- modes ---- */

int nvmlDeviceGetPersistenceMode(const Card *card, int *enabled) {
  UNUSED(card);
  MAY_FAIL;
  *enabled = (int)sim_number("PERSISTENCE_MODE", 1);
  return NVML_SUCCESS;
}

/* nvmlComputeMode_t: 0 default, 3 one process at a time */
int nvmlDeviceGetComputeMode(const Card *card, int *mode) {
  UNUSED(card);
  MAY_FAIL;
  *mode = (int)sim_number("COMPUTE_MODE", 0);
  return NVML_SUCCESS;
}

int nvmlDeviceGetMigMode(const Card *card, unsigned *now, unsigned *pending) {
  UNUSED(card);
  MAY_FAIL;
  *now = *pending = 0;
  return NVML_SUCCESS;
}

/* ---- what torch asks for when several cards may be linked ---- */

int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfoV(void) { return NVML_NOT_SUPPORTED; }
