/* Virtual memory management of the driver: addresses and memory apart. torch's expandable segments
 * (PYTORCH_ALLOC_CONF=expandable_segments:True) are made of it. */
#include "../model/model.h"
#include "layouts.h"

#include <stdlib.h>

typedef struct {
  sim_device *device;
  size_t size;
} Handle; /* behind CUmemGenericAllocationHandle */

#define NEED_DEVICE(device)                 \
  sim_device *device = NULL;                \
  do {                                      \
    int code_ = sim_injected(__func__);     \
    if (!code_) code_ = sim_enter(&device); \
    if (code_) return code_;                \
  } while (0)

int cuMemGetAllocationGranularity(size_t *granularity, const AllocationProperties *properties,
                                  int which) {
  UNUSED(properties, which);
  *granularity = sim_granularity();
  return SIM_SUCCESS;
}

int cuMemAddressReserve(void **address, size_t size, size_t alignment, unsigned long long hint,
                        unsigned long long flags) {
  UNUSED(alignment, hint, flags);
  NEED_DEVICE(device);
  return sim_reserve(device, size, address);
}

int cuMemAddressFree(void *address, size_t size) { return sim_unreserve(address, size); }

int cuMemCreate(Handle **made, size_t size, const AllocationProperties *properties,
                unsigned long long flags) {
  UNUSED(flags);
  NEED_DEVICE(current);
  sim_device *device = sim_device_at(properties->location.id);
  if (!device || size % sim_granularity()) return SIM_INVALID_VALUE;
  int code = sim_charge(device, size);
  if (code) return code;
  Handle *handle = malloc(sizeof *handle);
  if (!handle) return SIM_OUT_OF_MEMORY;
  *handle = (Handle){device, size};
  *made = handle;
  UNUSED(current);
  return SIM_SUCCESS;
}

int cuMemRelease(Handle *handle) {
  sim_refund(handle->device, handle->size);
  free(handle);
  return SIM_SUCCESS;
}

int cuMemMap(void *address, size_t size, size_t offset, const Handle *handle,
             unsigned long long flags) {
  UNUSED(flags);
  if (offset || size != handle->size) return sim_refuse("cuMemMap of a part", SIM_NOT_SUPPORTED);
  return sim_map(address, size);
}

int cuMemUnmap(void *address, size_t size) { return sim_unmap(address, size); }

int cuMemSetAccess(void *address, size_t size, const void *access, size_t count) {
  UNUSED(access, count);
  return sim_host_view(address, size) ? SIM_SUCCESS : SIM_INVALID_VALUE;
}
