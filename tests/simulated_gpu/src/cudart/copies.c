/* Copies and fills of the runtime: their bytes move at once, their time passes on the stream. */
#include "runtime.h"

#include <string.h>

/* Besides 1 us each; for host memory a PCI Express 4 bus, for the device's own an H100's. */
#define HOST_BYTES_PER_NS 20
#define DEVICE_BYTES_PER_NS 2000
#define SETUP_NS 1000

typedef struct {
  void *to;
  size_t to_pitch;
  const void *from;
  size_t from_pitch;
  size_t width, height;
} Copy;

static uint64_t copy_ns(const Copy *copy) {
  int inside = sim_owner(copy->to) && sim_owner(copy->from);
  return SETUP_NS + copy->width * copy->height / (inside ? DEVICE_BYTES_PER_NS : HOST_BYTES_PER_NS);
}

/* A kernel's time that SIMULATED_CUDA_KERNEL_TIMES has for "[memcpy]" is taken instead. */
static int submit(void *stream, const char *name, uint64_t ns) {
  sim_kernel *kernel = sim_kernel_named(name);
  if (!kernel) return SIM_OUT_OF_MEMORY;
  return sim_submit(stream, kernel,
                    strstr(sim_text("KERNEL_TIMES"), name) ? sim_kernel_ns(kernel) : ns);
}

/* Memory that is not pinned makes the host wait for the copy, as with a GPU. */
static int is_pageable(const void *address) {
  return !sim_owner(address) && !sim_is_pinned(address);
}

static int copy(Copy copy, void *stream, int wait) {
  if (copy.width && copy.height) {
    char *to = sim_host_view(copy.to, copy.to_pitch * (copy.height - 1) + copy.width);
    char *from = sim_host_view(copy.from, copy.from_pitch * (copy.height - 1) + copy.width);
    TRY(to && from ? SIM_SUCCESS : SIM_INVALID_VALUE);
    for (size_t row = 0; row < copy.height; row++)
      memmove(to + row * copy.to_pitch, from + row * copy.from_pitch, copy.width);
  }
  TRY(submit(stream, "[memcpy]", copy_ns(&copy)));
  if (wait || is_pageable(copy.to) || is_pageable(copy.from))
    TRY(sim_wait_stream(sim_stream_of(stream)));
  return SIM_SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  UNUSED(kind);
  NEED_CONTEXT;
  return copy((Copy){to, 0, from, 0, size, 1}, NULL, 1);
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  UNUSED(kind);
  NEED_CONTEXT;
  return copy((Copy){to, 0, from, 0, size, 1}, stream, 0);
}

int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                      size_t height, int kind, void *stream) {
  UNUSED(kind);
  NEED_CONTEXT;
  return copy((Copy){to, to_pitch, from, from_pitch, width, height}, stream, 0);
}

int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size,
                        void *stream) {
  UNUSED(to_device, from_device);
  NEED_CONTEXT;
  return copy((Copy){to, 0, from, 0, size, 1}, stream, 0);
}

/* Variables of CUDA binaries are read by kernels alone, which do nothing. */
int cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset, int kind) {
  UNUSED(symbol, from, size, offset, kind);
  NEED_CONTEXT;
  return SIM_SUCCESS;
}

int cudaGetSymbolAddress(void **pointer, const void *symbol) {
  NEED_CONTEXT;
  *pointer = (void *)symbol;
  return SIM_SUCCESS;
}

int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
  NEED_CONTEXT;
  if (size) {
    TRY(sim_host_view(to, size) ? SIM_SUCCESS : SIM_INVALID_VALUE);
    sim_fill(to, value, size);
  }
  TRY(submit(stream, "[memset]", SETUP_NS + size / DEVICE_BYTES_PER_NS));
  return SIM_SUCCESS;
}

int cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }
