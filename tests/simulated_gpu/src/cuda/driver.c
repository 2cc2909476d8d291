/* The driver's API, as far as torch asks for it: devices and contexts. Numbers: cuda.h. */
#include "../model/model.h"

static int contexts[SIM_MAX_DEVICES]; /* the context of a device is the address of its element */

#define NEED_DRIVER                     \
  do {                                  \
    int code_ = sim_injected(__func__); \
    if (!code_) code_ = sim_start();    \
    if (code_) return code_;            \
  } while (0)

int cuInit(unsigned flags) {
  UNUSED(flags);
  NEED_DRIVER;
  return SIM_SUCCESS;
}

int cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return SIM_SUCCESS;
}

int cuDeviceGetCount(int *count) {
  NEED_DRIVER;
  *count = sim_device_count();
  return SIM_SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
  NEED_DRIVER;
  *device = ordinal;
  return sim_device_at(ordinal) ? SIM_SUCCESS : SIM_INVALID_DEVICE;
}

int cuDeviceGetUuid(unsigned char uuid[16], int ordinal) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  if (!device) return SIM_INVALID_DEVICE;
  sim_uuid(device->physical, uuid);
  return SIM_SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int ordinal) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  if (!device) return SIM_INVALID_DEVICE;
  *value = sim_attribute(device, attribute);
  return SIM_SUCCESS;
}

int cuDevicePrimaryCtxGetState(int ordinal, unsigned *flags, int *active) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  if (!device) return SIM_INVALID_DEVICE;
  *flags = 0;
  *active = device->has_context;
  return SIM_SUCCESS;
}

int cuDevicePrimaryCtxRetain(int **context, int ordinal) {
  NEED_DRIVER;
  if (!sim_device_at(ordinal)) return SIM_INVALID_DEVICE;
  *context = &contexts[ordinal];
  return SIM_SUCCESS;
}

int cuCtxGetCurrent(int **context) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(sim_current_ordinal());
  *context = device && device->has_context ? &contexts[device->ordinal] : NULL;
  return SIM_SUCCESS;
}

int cuCtxSetCurrent(int *context) {
  NEED_DRIVER;
  return context ? sim_set_current((int)(context - contexts)) : SIM_SUCCESS;
}

/* CUpointer_attribute: what kind of memory it is (1 host, 2 device), its address, and whose it is.
 */
int cuPointerGetAttribute(void *value, int attribute, unsigned long long pointer) {
  NEED_DRIVER;
  sim_device *device = sim_owner((void *)pointer);
  if (!device && !sim_is_pinned((void *)pointer)) return SIM_INVALID_VALUE;
  switch (attribute) {
    case 2: *(unsigned *)value = device ? 2 : 1; return SIM_SUCCESS;
    case 3: *(unsigned long long *)value = pointer; return SIM_SUCCESS;
    case 9: *(int *)value = device ? device->ordinal : sim_current_ordinal(); return SIM_SUCCESS;
    default: return sim_refuse("cuPointerGetAttribute, this attribute", SIM_NOT_SUPPORTED);
  }
}

int cuGetErrorString(int code, const char **text) {
  *text = sim_error_text(code);
  return SIM_SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
  *name = sim_error_name(code);
  return SIM_SUCCESS;
}

int cuTensorMapEncodeTiled(void) { return SIM_SUCCESS; } /* read by kernels alone */
