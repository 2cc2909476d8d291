/* Kernels: their names, how long each takes, and how often each was launched.
 *
 * A kernel does nothing. It takes SIMULATED_CUDA_KERNEL_NS, or what SIMULATED_CUDA_KERNEL_TIMES has
 * for a part of its name: "gemm=20000,[memcpy]=5000". SIMULATED_CUDA_LAUNCH_LOG names a file to
 * which each launch adds a line: process, device, stream, nanoseconds and name, separated by tabs.
 */
#include "model.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sim_kernel {
  const void *key; /* the function on the host, or the name itself */
  const char *name;
  uint64_t launches;
  uint64_t ns;
  unsigned times_read; /* the reading of the settings that `ns` is of */
  sim_kernel *next;
};

#define BUCKETS 16384

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sim_kernel *buckets[BUCKETS];
static char *times_text;
static unsigned times_reading;

/* ---- names ---- */

static sim_kernel **bucket_of(const void *key) {
  return &buckets[((uintptr_t)key >> 4) * 2654435761u % BUCKETS];
}

static sim_kernel *find(const void *key) {
  sim_kernel *kernel = __atomic_load_n(bucket_of(key), __ATOMIC_ACQUIRE);
  while (kernel && kernel->key != key) kernel = kernel->next;
  return kernel;
}

static sim_kernel *add(const void *key, const char *name) {
  pthread_mutex_lock(&lock);
  sim_kernel *kernel = find(key);
  if (!kernel && (kernel = calloc(1, sizeof *kernel))) {
    sim_kernel **bucket = bucket_of(key);
    *kernel = (sim_kernel){.key = key, .name = name, .next = *bucket};
    __atomic_store_n(bucket, kernel, __ATOMIC_RELEASE);
  }
  pthread_mutex_unlock(&lock);
  return kernel;
}

void sim_register(const void *function, const char *name) { add(function, name); }
sim_kernel *sim_kernel_of(const void *function) { return find(function); }

sim_kernel *sim_kernel_named(const char *name) {
  sim_kernel *kernel = find(name);
  return kernel ? kernel : add(name, name);
}

/* torch.cuda._sleep is this kernel of torch's, with the cycles as its only argument. */
int sim_kernel_spins(const sim_kernel *kernel) {
  return strstr(kernel->name, "spin_kernel") != NULL;
}

/* ---- times ---- */

static uint64_t time_of(const char *name, const char *times) {
  for (const char *entry = times; *entry;) {
    size_t length = strcspn(entry, ",");
    char part[160];
    snprintf(part, sizeof part, "%.*s", (int)length, entry);
    char *equals = strrchr(part, '=');
    if (equals) {
      *equals = 0;
      if (strstr(name, part)) return strtoull(equals + 1, NULL, 10);
    }
    entry += length + (entry[length] == ',');
  }
  return UINT64_MAX;
}

uint64_t sim_kernel_ns(sim_kernel *kernel) {
  const char *times = sim_text("KERNEL_TIMES");
  if (*times) {
    pthread_mutex_lock(&lock);
    if (!times_text || strcmp(times, times_text)) {
      free(times_text);
      times_text = strdup(times);
      times_reading++;
    }
    if (kernel->times_read != times_reading) {
      kernel->ns = time_of(kernel->name, times);
      kernel->times_read = times_reading;
    }
    uint64_t ns = kernel->ns;
    pthread_mutex_unlock(&lock);
    if (ns != UINT64_MAX) return ns;
  }
  return sim_number("KERNEL_NS", 2000);
}

/* ---- launches ---- */

static void write_log(const sim_kernel *kernel, const sim_stream *stream, uint64_t ns) {
  const char *path = sim_text("LAUNCH_LOG");
  if (!*path) return;
  int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) return;
  dprintf(file, "%d\t%d\t%p\t%llu\t%s\n", (int)getpid(), stream->device->ordinal,
          stream == &stream->device->default_stream ? NULL : (const void *)stream,
          (unsigned long long)ns, kernel->name);
  close(file);
}

void sim_count(sim_kernel *kernel, const sim_stream *stream, uint64_t ns) {
  __atomic_add_fetch(&kernel->launches, 1, __ATOMIC_RELAXED);
  write_log(kernel, stream, ns);
}

int sim_work(void *stream, const char *name) {
  sim_kernel *kernel = sim_kernel_named(name);
  if (!kernel) return SIM_OUT_OF_MEMORY;
  return sim_submit(stream, kernel, sim_kernel_ns(kernel));
}

uint64_t simulated_cuda_launches(const char *part) {
  uint64_t sum = 0;
  int copies_too = part && *part == '[';
  for (size_t i = 0; i < BUCKETS; i++)
    for (sim_kernel *kernel = buckets[i]; kernel; kernel = kernel->next)
      if ((copies_too || *kernel->name != '[') && strstr(kernel->name, part ? part : ""))
        sum += kernel->launches;
  return sum;
}
