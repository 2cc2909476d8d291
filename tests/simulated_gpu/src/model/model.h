/* The simulated cards: what the libraries of the stand-in share, in libsimulated_cuda.so.
 *
 * The libraries that bear NVIDIA's names hold the public functions and little else. Settings,
 * devices, memory, time and kernels are kept here, so that the runtime, the driver, cuBLAS, cuDNN
 * and NVML describe the same card. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Arguments that the public signature has and the stand-in has no use for. */
#define UNUSED(...) sim_unused(0, __VA_ARGS__)
static inline void sim_unused(int first, ...) { (void)first; }

#define MIB ((size_t)1 << 20)
#define SIM_MAX_DEVICES 8
#define SIM_QUEUE_LENGTH 1024 /* launches that a stream takes before it makes the host wait */

/* Codes that cudaError_t (driver_types.h) and CUresult (cuda.h) have in common. */
enum {
  SIM_SUCCESS = 0,
  SIM_INVALID_VALUE = 1,
  SIM_OUT_OF_MEMORY = 2,
  SIM_INITIALIZATION_ERROR = 3,
  SIM_DEVICES_UNAVAILABLE = 46,
  SIM_NO_DEVICE = 100,
  SIM_INVALID_DEVICE = 101,
  SIM_INVALID_HANDLE = 400,
  SIM_NOT_FOUND = 500,
  SIM_NOT_READY = 600,
  SIM_ILLEGAL_ADDRESS = 700,
  SIM_ASSERT = 710,
  SIM_LAUNCH_FAILURE = 719,
  SIM_NOT_SUPPORTED = 801,
  SIM_CAPTURE_UNSUPPORTED = 900,
  SIM_CAPTURE_INVALIDATED = 901,
};

/* ---- settings.c: environment variables SIMULATED_CUDA_<name>, read at each use ---- */

const char *sim_text(const char *name);                    /* "" where it is not set */
uint64_t sim_number(const char *name, uint64_t otherwise); /* 300, 0x44, 64M, 2G */

/* ---- errors.c ---- */

const char *sim_error_name(int code);
const char *sim_error_text(int code);

/* ---- failures.c ---- */

int sim_injected(const char *function); /* the code that SIMULATED_CUDA_FAIL has for it, or 0 */
int sim_refuse(const char *function, int code); /* what the stand-in cannot do: returns the code */

/* ---- cards.c ---- */

typedef struct sim_kernel sim_kernel;
typedef struct sim_graph sim_graph;

typedef struct sim_stream {
  struct sim_device *device;
  int priority;
  unsigned flags;
  uint64_t busy_until_ns; /* when all of its work is done, on the host's monotonic clock */
  uint64_t launches;
  uint64_t ends_ns[SIM_QUEUE_LENGTH]; /* when each of the latest launches is done */
  uint64_t capture_id; /* of the graph that its work is recorded into, while that is captured */
} sim_stream;

typedef struct sim_device {
  int ordinal;  /* among those that CUDA_VISIBLE_DEVICES shows */
  int physical; /* among those of the machine, as NVML counts */
  int has_context;
  int broken;              /* the error that a failed kernel left in the context, or 0 */
  char *addresses;         /* the first address that this device hands out */
  unsigned char *granules; /* the state of each 2 MiB of its addresses */
  size_t granule_count;
  uint64_t used_bytes;    /* by this process, its context included */
  uint64_t busy_until_ns; /* the latest of its streams */
  sim_stream default_stream;
} sim_device;

int sim_start(void); /* starts the driver; a forked child of its process gets an error */
int sim_enter(sim_device **device);     /* besides, the context of the thread's device */
int sim_device_count(void);             /* after sim_start */
sim_device *sim_device_at(int ordinal); /* NULL where there is none */
int sim_current_ordinal(void);
int sim_set_current(int ordinal);
void sim_break(int code);                 /* the thread's device fails from now on */
uint64_t sim_process_bytes(int physical); /* what this process holds of a card */

int sim_physical_count(void);
uint64_t sim_card_bytes(void);
uint64_t sim_other_bytes(void); /* of each card, by a process that is not there */
uint64_t sim_context_bytes(void);
int sim_capability(void); /* 90 for 9.0 */
int sim_clock_mhz(void);
int sim_multiprocessors(void);
uint64_t sim_l2_bytes(void);
int sim_pci_bus(int physical);
void sim_uuid(int physical, unsigned char uuid[16]);
void sim_uuid_text(int physical, char text[41]); /* GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx */

/* ---- attributes.c ---- */

int sim_attribute(const sim_device *device, int attribute);

/* ---- memory.c ---- */

size_t sim_granularity(void);
int sim_open_addresses(sim_device *device);
int sim_allocate(sim_device *device, size_t size, void **address);
int sim_release(void *address);
int sim_reserve(sim_device *device, size_t size, void **address); /* addresses without memory */
int sim_map(void *address, size_t size); /* memory that was charged already */
int sim_unmap(void *address, size_t size);
int sim_unreserve(void *address, size_t size);
int sim_charge(sim_device *device, size_t size); /* takes bytes off the card */
void sim_refund(sim_device *device, size_t size);
sim_device *sim_owner(const void *address); /* whose address this is; NULL for the host's */
char *sim_host_view(const void *address,
                    size_t size); /* where the bytes are; NULL where none are allocated */
void sim_fill(void *address, int value, size_t size);
int sim_pin(void *address, size_t size);
int sim_unpin(void *address);
int sim_is_pinned(const void *address);

/* ---- timeline.c ---- */

uint64_t sim_now_ns(void);
void sim_wait_until(uint64_t then_ns);
sim_stream *sim_stream_of(void *handle); /* the handles 0, 1 and 2 are default streams */
int sim_submit(void *stream, sim_kernel *kernel, uint64_t ns); /* a launch that takes so long */
uint64_t sim_mark(sim_stream *stream);                         /* an event on it: when it happens */
void sim_hold_until(sim_stream *stream, uint64_t then_ns);     /* its next work starts no earlier */
int sim_wait_stream(sim_stream *stream);
sim_graph *sim_capture_of(const sim_stream *stream); /* NULL unless it is captured */
int sim_begin_capture(sim_stream *stream);
void sim_join_capture(sim_stream *stream, uint64_t id);
int sim_end_capture(sim_stream *stream, sim_graph **graph);
size_t sim_graph_size(const sim_graph *graph);
uint64_t sim_graph_id(const sim_graph *graph);
int sim_graph_invalid(const sim_graph *graph);
sim_graph *sim_graph_copy(const sim_graph *graph);
int sim_graph_run(const sim_graph *graph, void *stream);
void sim_graph_free(sim_graph *graph);

/* ---- kernels.c ---- */

void sim_register(const void *function,
                  const char *name); /* a kernel of a CUDA binary, by its stub on the host */
sim_kernel *sim_kernel_of(const void *function);
sim_kernel *sim_kernel_named(const char *name); /* work of a library, by a name that lasts */
uint64_t sim_kernel_ns(sim_kernel *kernel);
int sim_kernel_spins(const sim_kernel *kernel);
void sim_count(sim_kernel *kernel, const sim_stream *stream,
               uint64_t ns);                  /* counts and logs a launch */
int sim_work(void *stream, const char *name); /* a kernel of a library, submitted */

/* For tests, from Python: how many kernels this process has launched whose name contains `part`.
 * Copies and fills are no kernels; they are counted under "[memcpy]" and "[memset]". */
uint64_t simulated_cuda_launches(const char *part);
