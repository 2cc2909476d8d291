/* Memory of the cards: addresses that the host cannot touch, and bytes that copies can.
 *
 * A device hands out addresses in granules of 2 MiB, as the driver does. The bytes of an address
 * lie a fixed distance behind it in this process, where the host takes a page only when a copy
 * touches it. The addresses themselves are mapped without any right: a kernel that is run on the
 * host by mistake faults, as it would with a GPU. */
#define _GNU_SOURCE
#include "model.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GRANULE (2 * MIB)
#define ROOM \
  16 /* addresses for so many times the card's memory: holes between them do not matter */

enum { FREE, RESERVED, MAPPED, FIRST, FURTHER }; /* FIRST and FURTHER granules of one allocation */

typedef struct Pinned {
  const char *start;
  size_t size;
  struct Pinned *next;
} Pinned;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Pinned *pinned;

size_t sim_granularity(void) { return GRANULE; }
static size_t room_bytes(const sim_device *device) { return device->granule_count * GRANULE; }
static size_t granules_for(size_t size) { return size / GRANULE + (size % GRANULE != 0); }

int sim_open_addresses(sim_device *device) {
  if (device->addresses) return SIM_SUCCESS;
  device->granule_count = sim_card_bytes() / GRANULE * ROOM;
  size_t room = room_bytes(device);
  device->granules = calloc(device->granule_count + 1, 1);
  char *start =
      mmap(NULL, 2 * room + GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED || !device->granules) return SIM_OUT_OF_MEMORY;
  start += (GRANULE - (uintptr_t)start % GRANULE) % GRANULE;
  if (mprotect(start + room, room, PROT_READ | PROT_WRITE)) return SIM_OUT_OF_MEMORY;
  madvise(start + room, room,
          MADV_NOHUGEPAGE); /* a copy of 4 bytes takes 4 KiB of the host, not 2 MiB */
  device->addresses = start;
  return SIM_SUCCESS;
}

sim_device *sim_owner(const void *address) {
  for (int ordinal = 0; ordinal < sim_device_count(); ordinal++) {
    sim_device *device = sim_device_at(ordinal);
    if (device->addresses && (const char *)address >= device->addresses &&
        (const char *)address < device->addresses + room_bytes(device))
      return device;
  }
  return NULL;
}

static size_t granule_of(const sim_device *device, const void *address) {
  return (size_t)((const char *)address - device->addresses) / GRANULE;
}

static char *bytes_behind(const sim_device *device, const void *address) {
  return (char *)address + room_bytes(device);
}

char *sim_host_view(const void *address, size_t size) {
  sim_device *device = sim_owner(address);
  if (!device) return (char *)address;
  size_t first = granule_of(device, address);
  size_t last = granule_of(device, (const char *)address + (size ? size - 1 : 0));
  for (size_t i = first; i <= last; i++) {
    unsigned char granule = device->granules[i];
    if (granule < MAPPED || (granule == FIRST && i != first)) return NULL;
  }
  return bytes_behind(device, address);
}

/* Give pages back to the host; they read 0 from now on. */
static void drop_bytes(const sim_device *device, const void *address, size_t size) {
  madvise(bytes_behind(device, address), size, MADV_DONTNEED);
}

void sim_fill(void *address, int value, size_t size) {
  sim_device *device = sim_owner(address);
  char *start = sim_host_view(address, size);
  if (value || size < MIB || !device) {
    memset(start, value, size);
    return;
  }
  /* Zeros over a large range: drop its whole pages, which costs the host nothing. */
  size_t page = 4096, before = (page - (uintptr_t)start % page) % page,
         whole = (size - before) / page * page;
  memset(start, 0, before);
  madvise(start + before, whole, MADV_DONTNEED);
  memset(start + before + whole, 0, size - before - whole);
}

/* ---- what is taken off the card ---- */

int sim_charge(sim_device *device, size_t size) {
  int code = SIM_OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  if (device->used_bytes + sim_other_bytes() + size <= sim_card_bytes()) {
    device->used_bytes += size;
    code = SIM_SUCCESS;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

void sim_refund(sim_device *device, size_t size) {
  pthread_mutex_lock(&lock);
  device->used_bytes -= size;
  pthread_mutex_unlock(&lock);
}

/* ---- addresses ---- */

/* Take the first hole of so many granules. */
static int take_addresses(sim_device *device, size_t count, int first, int further,
                          void **address) {
  int code = SIM_OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  for (size_t end = 0, hole = 0; end < device->granule_count; end++) {
    hole = device->granules[end] == FREE ? hole + 1 : 0;
    if (hole < count) continue;
    size_t start = end + 1 - count;
    memset(device->granules + start, further, count);
    device->granules[start] = (unsigned char)first;
    *address = device->addresses + start * GRANULE;
    code = SIM_SUCCESS;
    break;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int sim_allocate(sim_device *device, size_t size, void **address) {
  *address = NULL;
  if (!size) return SIM_SUCCESS;
  size_t count = granules_for(size);
  if (count > device->granule_count) return SIM_OUT_OF_MEMORY;
  int code = sim_charge(device, count * GRANULE);
  if (code) return code;
  code = take_addresses(device, count, FIRST, FURTHER, address);
  if (code) sim_refund(device, count * GRANULE);
  return code;
}

int sim_release(void *address) {
  if (!address) return SIM_SUCCESS;
  sim_device *device = sim_owner(address);
  if (!device || (size_t)((char *)address - device->addresses) % GRANULE) return SIM_INVALID_VALUE;
  pthread_mutex_lock(&lock);
  size_t first = granule_of(device, address), end = first + 1;
  if (device->granules[first] != FIRST) {
    pthread_mutex_unlock(&lock);
    return SIM_INVALID_VALUE;
  }
  while (end < device->granule_count && device->granules[end] == FURTHER) end++;
  drop_bytes(device, address, (end - first) * GRANULE);
  memset(device->granules + first, FREE, end - first);
  device->used_bytes -= (end - first) * GRANULE;
  pthread_mutex_unlock(&lock);
  return SIM_SUCCESS;
}

/* ---- addresses and memory apart, as the driver's virtual memory management has them ---- */

int sim_reserve(sim_device *device, size_t size, void **address) {
  return take_addresses(device, granules_for(size), RESERVED, RESERVED, address);
}

static int change(void *address, size_t size, int from, int to) {
  sim_device *device = sim_owner(address);
  if (!device) return SIM_INVALID_VALUE;
  int code = SIM_SUCCESS;
  size_t first = granule_of(device, address), count = granules_for(size);
  pthread_mutex_lock(&lock);
  for (size_t i = first; i < first + count; i++)
    if (device->granules[i] != from) code = SIM_INVALID_VALUE;
  if (!code) memset(device->granules + first, to, count);
  pthread_mutex_unlock(&lock);
  return code;
}

int sim_map(void *address, size_t size) { return change(address, size, RESERVED, MAPPED); }

int sim_unmap(void *address, size_t size) {
  int code = change(address, size, MAPPED, RESERVED);
  if (!code) drop_bytes(sim_owner(address), address, granules_for(size) * GRANULE);
  return code;
}

int sim_unreserve(void *address, size_t size) { return change(address, size, RESERVED, FREE); }

/* ---- pages of the host that the card may read by itself ---- */

int sim_pin(void *address, size_t size) {
  Pinned *entry = malloc(sizeof *entry);
  if (!entry) return SIM_OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  *entry = (Pinned){address, size, pinned};
  pinned = entry;
  pthread_mutex_unlock(&lock);
  return SIM_SUCCESS;
}

int sim_unpin(void *address) {
  int code = SIM_INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (Pinned **link = &pinned; *link; link = &(*link)->next) {
    Pinned *entry = *link;
    if (entry->start != address) continue;
    *link = entry->next;
    free(entry);
    code = SIM_SUCCESS;
    break;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int sim_is_pinned(const void *address) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (Pinned *entry = pinned; entry && !found; entry = entry->next)
    found =
        (const char *)address >= entry->start && (const char *)address < entry->start + entry->size;
  pthread_mutex_unlock(&lock);
  return found;
}
