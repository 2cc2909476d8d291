/* Memory of the runtime: device memory, its pools, and pinned memory of the host. */
#include "layouts.h"
#include "runtime.h"

#include <stdlib.h>

int cudaDeviceSynchronize(void);

int cudaMalloc(void **pointer, size_t size) {
  *pointer = NULL;
  NEED_DEVICE(device);
  TRY(sim_allocate(device, size, pointer));
  return SIM_SUCCESS;
}

int cudaFree(void *pointer) {
  NEED_CONTEXT; /* cudaFree(0) is the customary way to make one */
  int code = cudaDeviceSynchronize();
  if (code) return code;
  TRY(sim_release(pointer));
  return SIM_SUCCESS;
}

int cudaMemGetInfo(size_t *available, size_t *total) {
  NEED_DEVICE(device);
  *total = sim_card_bytes();
  *available = *total - device->used_bytes - sim_other_bytes();
  return SIM_SUCCESS;
}

/* ---- the stream-ordered allocator; order makes no difference, since bytes move at once ---- */

int cudaMallocAsync(void **pointer, size_t size, void *stream) {
  UNUSED(stream);
  *pointer = NULL;
  NEED_DEVICE(device);
  TRY(sim_allocate(device, size, pointer));
  return SIM_SUCCESS;
}

int cudaFreeAsync(void *pointer, void *stream) {
  UNUSED(stream);
  NEED_CONTEXT;
  TRY(sim_release(pointer));
  return SIM_SUCCESS;
}

int cudaDeviceGetDefaultMemPool(void **pool, int ordinal) {
  NEED_DRIVER;
  *pool = sim_device_at(ordinal);
  TRY(*pool ? SIM_SUCCESS : SIM_INVALID_DEVICE);
  return SIM_SUCCESS;
}

int cudaMemPoolGetAttribute(sim_device *pool, int attribute, unsigned long long *value) {
  NEED_CONTEXT;
  int is_bytes = attribute >= 5; /* cudaMemPoolAttrReservedMemCurrent and the three after it */
  *value = is_bytes && pool->used_bytes ? pool->used_bytes - sim_context_bytes() : 0;
  return SIM_SUCCESS;
}

int cudaMemPoolSetAttribute(void *pool, int attribute, void *value) {
  UNUSED(pool, attribute, value);
  return SIM_SUCCESS;
}

int cudaMemPoolSetAccess(void *pool, const void *access, size_t count) {
  UNUSED(pool, access, count);
  return SIM_SUCCESS;
}

int cudaMemPoolTrimTo(void *pool, size_t keep) {
  UNUSED(pool, keep);
  return SIM_SUCCESS;
}

/* ---- pinned memory ---- */

int cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
  UNUSED(flags);
  NEED_CONTEXT;
  TRY(posix_memalign(pointer, 4096, size ? size : 1) ? SIM_OUT_OF_MEMORY : SIM_SUCCESS);
  TRY(sim_pin(*pointer, size));
  return SIM_SUCCESS;
}

int cudaFreeHost(void *pointer) {
  NEED_CONTEXT;
  if (!pointer) return SIM_SUCCESS;
  TRY(sim_unpin(pointer));
  free(pointer);
  return SIM_SUCCESS;
}

int cudaHostRegister(void *pointer, size_t size, unsigned flags) {
  UNUSED(flags);
  NEED_CONTEXT;
  TRY(sim_pin(pointer, size));
  return SIM_SUCCESS;
}

int cudaHostUnregister(void *pointer) {
  NEED_CONTEXT;
  TRY(sim_unpin(pointer));
  return SIM_SUCCESS;
}

int cudaPointerGetAttributes(PointerAttributes *attributes, const void *pointer) {
  NEED_CONTEXT;
  sim_device *device = sim_owner(pointer);
  if (device && sim_host_view(pointer, 1))
    *attributes =
        (PointerAttributes){.type = 2, .device = device->ordinal, .devicePointer = pointer};
  else if (sim_is_pinned(pointer))
    *attributes = (PointerAttributes){.type = 1,
                                      .device = sim_current_ordinal(),
                                      .devicePointer = pointer,
                                      .hostPointer = pointer};
  else
    *attributes = (PointerAttributes){
        .type = 0, .device = -2 /* cudaInvalidDeviceId */, .hostPointer = pointer};
  return SIM_SUCCESS;
}
