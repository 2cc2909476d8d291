/* Devices of the runtime: how many, which is current, and what they are (model/attributes.c). */
#include "layouts.h"
#include "runtime.h"

#include <dlfcn.h>
#include <stdio.h>

int cudaGetDeviceCount(int *count) {
  *count = 0;
  NEED_DRIVER;
  *count = sim_device_count();
  return SIM_SUCCESS;
}

int cudaGetDevice(int *device) {
  NEED_DRIVER;
  *device = sim_current_ordinal();
  return SIM_SUCCESS;
}

int cudaSetDevice(int device) {
  NEED_DRIVER;
  TRY(sim_set_current(device));
  TRY(sim_enter(NULL)); /* since CUDA 12 this makes the context */
  return SIM_SUCCESS;
}

int cudaDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return SIM_SUCCESS;
}

int cudaRuntimeGetVersion(int *version) {
  *version = CUDA_VERSION;
  return SIM_SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int ordinal) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  TRY(device ? SIM_SUCCESS : SIM_INVALID_DEVICE);
  *value = sim_attribute(device, attribute);
  return SIM_SUCCESS;
}

int cudaGetDeviceProperties(DeviceProperties *properties, int ordinal) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  TRY(device ? SIM_SUCCESS : SIM_INVALID_DEVICE);
#define OF(attribute) sim_attribute(device, attribute)
  *properties = (DeviceProperties){
      .name = "Simulated GPU",
      .totalGlobalMem = sim_card_bytes(),
      .sharedMemPerBlock = OF(8),
      .regsPerBlock = OF(12),
      .warpSize = OF(10),
      .memPitch = OF(11),
      .maxThreadsPerBlock = OF(1),
      .maxThreadsDim = {OF(2), OF(3), OF(4)},
      .maxGridSize = {OF(5), OF(6), OF(7)},
      .totalConstMem = OF(9),
      .major = OF(75),
      .minor = OF(76),
      .textureAlignment = OF(14),
      .texturePitchAlignment = OF(51),
      .multiProcessorCount = OF(16),
      .canMapHostMemory = OF(19),
      .surfaceAlignment = OF(30),
      .concurrentKernels = OF(31),
      .pciBusID = OF(33),
      .asyncEngineCount = OF(40),
      .unifiedAddressing = OF(41),
      .memoryBusWidth = OF(37),
      .l2CacheSize = OF(38),
      .maxThreadsPerMultiProcessor = OF(39),
      .streamPrioritiesSupported = OF(78),
      .globalL1CacheSupported = OF(79),
      .localL1CacheSupported = OF(80),
      .sharedMemPerMultiprocessor = OF(81),
      .regsPerMultiprocessor = OF(82),
      .managedMemory = OF(83),
      .computePreemptionSupported = OF(90),
      .cooperativeLaunch = OF(95),
      .sharedMemPerBlockOptin = OF(97),
      .maxBlocksPerMultiProcessor = OF(106),
      .reservedSharedMemPerBlock = OF(111),
      .hostRegisterSupported = OF(99),
      .memoryPoolsSupported = OF(115),
      .clusterLaunch = OF(120),
  };
#undef OF
  sim_uuid(device->physical, properties->uuid);
  return SIM_SUCCESS;
}

int cudaDeviceGetPCIBusId(char *text, int length, int ordinal) {
  NEED_DRIVER;
  sim_device *device = sim_device_at(ordinal);
  TRY(device ? SIM_SUCCESS : SIM_INVALID_DEVICE);
  snprintf(text, (size_t)length, "0000:%02X:00.0", (unsigned)sim_pci_bus(device->physical));
  return SIM_SUCCESS;
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  NEED_DRIVER;
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SIM_SUCCESS;
}

int cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  NEED_DRIVER;
  *can = device != peer;
  return SIM_SUCCESS;
}

int cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  static unsigned char enabled[SIM_MAX_DEVICES][SIM_MAX_DEVICES];
  UNUSED(flags);
  NEED_DEVICE(device);
  TRY(sim_device_at(peer) && peer != device->ordinal ? SIM_SUCCESS : SIM_INVALID_DEVICE);
  TRY(enabled[device->ordinal][peer]++ ? 704 : SIM_SUCCESS); /* cudaErrorPeerAccessAlreadyEnabled */
  return SIM_SUCCESS;
}

int cudaDeviceSynchronize(void) {
  NEED_DEVICE(device);
  if (sim_capture_of(&device->default_stream)) TRY(sim_wait_stream(&device->default_stream));
  sim_wait_until(device->busy_until_ns);
  return SIM_SUCCESS;
}

int cudaProfilerStart(void) { return SIM_SUCCESS; }
int cudaProfilerStop(void) { return SIM_SUCCESS; }

/* Return a function of the driver by its name; flags and versions make no difference here. */
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                     unsigned long long flags, int *status) {
  UNUSED(version, flags);
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY); /* which this library brings along */
  *function = driver ? dlsym(driver, name) : NULL;
  if (status) *status = *function ? 0 : 1; /* cudaDriverEntryPointSymbolNotFound */
  return SIM_SUCCESS;
}
