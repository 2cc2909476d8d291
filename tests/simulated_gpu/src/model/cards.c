/* The cards of the machine, and those of them that this process sees. */
#include "model.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* The driver does not survive a fork: a child of a process that started it gets an error for good.
 */
enum { NOT_STARTED, STARTED, LOST };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int state = NOT_STARTED;
static sim_device devices[SIM_MAX_DEVICES];
static int device_count;
static __thread int current;

/* ---- what a card is ---- */

int sim_physical_count(void) {
  uint64_t count = sim_number("DEVICES", 2);
  return count > SIM_MAX_DEVICES ? SIM_MAX_DEVICES : (int)count;
}

uint64_t sim_card_bytes(void) {
  return sim_number("BYTES", 2048 * MIB) / sim_granularity() * sim_granularity();
}
uint64_t sim_other_bytes(void) { return sim_number("OTHER_BYTES", 0); }
uint64_t sim_context_bytes(void) { return sim_number("CONTEXT_BYTES", 64 * MIB); }
uint64_t sim_l2_bytes(void) { return sim_number("L2_BYTES", 50 * MIB); }
int sim_capability(void) { return (int)sim_number("CAPABILITY", 90); }
int sim_clock_mhz(void) { return (int)sim_number("CLOCK_MHZ", 1980); }
int sim_multiprocessors(void) { return (int)sim_number("MULTIPROCESSORS", 132); }

int sim_pci_bus(int physical) { return 0x10 + 0x20 * physical; }

void sim_uuid(int physical, unsigned char uuid[16]) {
  static const unsigned char stem[15] = {0x51, 0x3d, 0x01, 0xa7, 0xed, 0xc0,
                                         0x4d, 0xa0, 0x90, 0x0d, 0xca, 0x2d};
  memcpy(uuid, stem, sizeof stem);
  uuid[15] = (unsigned char)(physical + 1);
}

void sim_uuid_text(int physical, char text[41]) {
  unsigned char uuid[16];
  sim_uuid(physical, uuid);
  char *end = text + sprintf(text, "GPU");
  for (int i = 0; i < 16; i++) {
    int group_starts = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
    end += sprintf(end, group_starts ? "-%02x" : "%02x", uuid[i]);
  }
}

/* ---- which of them this process sees ---- */

/* Return the card that a word of CUDA_VISIBLE_DEVICES means, by index or by a start of its UUID; or
 * -1. */
static int card_named(const char *word) {
  if (!strncmp(word, "GPU-", 4)) {
    for (int physical = 0; physical < sim_physical_count(); physical++) {
      char uuid[41];
      sim_uuid_text(physical, uuid);
      if (!strncmp(uuid, word, strlen(word))) return physical;
    }
    return -1;
  }
  char *end;
  long index = strtol(word, &end, 10);
  return end == word || *end || index < 0 || index >= sim_physical_count() ? -1 : (int)index;
}

static void add_device(int physical) {
  sim_device *device = &devices[device_count];
  *device = (sim_device){.ordinal = device_count, .physical = physical};
  device->default_stream.device = device;
  device_count++;
}

static void find_devices(void) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) {
    for (int physical = 0; physical < sim_physical_count(); physical++) add_device(physical);
    return;
  }
  while (*visible && device_count < SIM_MAX_DEVICES) {
    size_t length = strcspn(visible, ",");
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)length, visible);
    int physical = card_named(word);
    if (physical < 0) return; /* what follows a wrong one is not seen either */
    add_device(physical);
    visible += length + (visible[length] == ',');
  }
}

static void lose(void) { state = LOST; }

int sim_start(void) {
  /* LOST is looked at before the lock, which a fork may have copied while it was held. */
  int now = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
  if (now == LOST) return SIM_INITIALIZATION_ERROR;
  if (now == NOT_STARTED) {
    pthread_mutex_lock(&lock);
    if (state == NOT_STARTED) {
      find_devices();
      pthread_atfork(NULL, NULL, lose);
      __atomic_store_n(&state, STARTED, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
  }
  return device_count ? SIM_SUCCESS : SIM_NO_DEVICE;
}

int sim_device_count(void) { return device_count; }
sim_device *sim_device_at(int ordinal) {
  return ordinal >= 0 && ordinal < device_count ? &devices[ordinal] : NULL;
}
int sim_current_ordinal(void) { return current; }

int sim_set_current(int ordinal) {
  if (!sim_device_at(ordinal)) return SIM_INVALID_DEVICE;
  current = ordinal;
  return SIM_SUCCESS;
}

/* ---- contexts ---- */

enum { SHARED = 0, PROHIBITED = 2, EXCLUSIVE = 3 }; /* nvmlComputeMode_t */

/* Return whether the card's compute mode lets this process in. An exclusive card is locked by its
 * one process, until that and its children are gone. */
static int admitted(const sim_device *device) {
  uint64_t mode = sim_number("COMPUTE_MODE", SHARED);
  if (mode == PROHIBITED) return 0;
  if (mode != EXCLUSIVE) return 1;
  const char *folder = getenv("TMPDIR");
  char path[256];
  snprintf(path, sizeof path, "%s/simulated-cuda-%d-%d", folder ? folder : "/tmp", (int)getuid(),
           device->physical);
  int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return 0;
  if (!flock(file, LOCK_EX | LOCK_NB)) return 1;
  close(file);
  return 0;
}

static int make_context(sim_device *device) {
  int code = SIM_SUCCESS;
  pthread_mutex_lock(&lock);
  if (!device->has_context) {
    code = admitted(device) ? sim_open_addresses(device) : SIM_DEVICES_UNAVAILABLE;
    if (!code) code = sim_charge(device, sim_context_bytes());
    if (!code) __atomic_store_n(&device->has_context, 1, __ATOMIC_RELEASE);
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int sim_enter(sim_device **found) {
  int code = sim_start();
  if (code) return code;
  sim_device *device = &devices[current];
  if (!__atomic_load_n(&device->has_context, __ATOMIC_ACQUIRE)) code = make_context(device);
  if (found) *found = device;
  return code ? code : device->broken;
}

void sim_break(int code) { devices[current].broken = code; }

uint64_t sim_process_bytes(int physical) {
  if (state != STARTED) return 0;
  uint64_t bytes = 0;
  for (int i = 0; i < device_count; i++)
    if (devices[i].physical == physical && devices[i].has_context) bytes += devices[i].used_bytes;
  return bytes;
}
