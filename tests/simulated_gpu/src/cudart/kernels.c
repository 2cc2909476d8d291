/* Kernels of the runtime: what a CUDA binary registers when it is loaded, and launches.
 * The functions with two underscores are those that nvcc's generated code calls
 * (crt/host_runtime.h). */
#include "layouts.h"
#include "runtime.h"

#define MAX_DYNAMIC_SHARED 232448
#define INVALID_CONFIGURATION 9    /* cudaErrorInvalidConfiguration */
#define INVALID_DEVICE_FUNCTION 98 /* cudaErrorInvalidDeviceFunction */

/* ---- registration ---- */

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  UNUSED(binary);
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) { UNUSED(handle); }
void __cudaUnregisterFatBinary(void **handle) { UNUSED(handle); }

char __cudaInitModule(void **handle) {
  UNUSED(handle);
  return 0;
}

void __cudaRegisterVar(void **handle) { UNUSED(handle); }

void __cudaRegisterFunction(void **handle, const void *function, char *device_function,
                            const char *name) {
  UNUSED(handle, device_function);
  sim_register(function, name);
}

int __cudaGetKernel(const void **kernel, const void *function) {
  *kernel = function;
  return SIM_SUCCESS;
}

/* ---- launches ---- */

/* What stands between <<< and >>> waits here for the stub that nvcc made of the kernel. */
static __thread LaunchConfig pushed[8];
static __thread int depth;

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream) {
  if (depth == 8) return 1;
  pushed[depth++] = (LaunchConfig){
      .gridDim = grid, .blockDim = block, .dynamicSmemBytes = shared, .stream = stream};
  return 0;
}

int __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void **stream) {
  TRY(depth ? SIM_SUCCESS : INVALID_CONFIGURATION);
  const LaunchConfig *top = &pushed[--depth];
  *grid = top->gridDim;
  *block = top->blockDim;
  *shared = top->dynamicSmemBytes;
  *stream = top->stream;
  return SIM_SUCCESS;
}

static int fits(Dim3 grid, Dim3 block, size_t shared) {
  size_t threads = (size_t)block.x * block.y * block.z;
  return grid.x && grid.x <= 0x7fffffff && grid.y && grid.y <= 65535 && grid.z && grid.z <= 65535 &&
         threads && threads <= 1024 && block.z <= 64 && shared <= MAX_DYNAMIC_SHARED;
}

static uint64_t duration_ns(sim_kernel *kernel, void **arguments) {
  if (!sim_kernel_spins(kernel)) return sim_kernel_ns(kernel);
  return (uint64_t)((double)*(const int64_t *)arguments[0] * 1000.0 / sim_clock_mhz());
}

int cudaLaunchKernel(const void *function, Dim3 grid, Dim3 block, void **arguments, size_t shared,
                     void *stream) {
  NEED_CONTEXT;
  TRY(fits(grid, block, shared) ? SIM_SUCCESS : INVALID_CONFIGURATION);
  sim_kernel *kernel = sim_kernel_of(function);
  TRY(kernel ? SIM_SUCCESS : INVALID_DEVICE_FUNCTION);
  TRY(sim_submit(stream, kernel, duration_ns(kernel, arguments)));
  return SIM_SUCCESS;
}

int __cudaLaunchKernel(const void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t shared,
                       void *stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

int cudaLaunchCooperativeKernel(const void *function, Dim3 grid, Dim3 block, void **arguments,
                                size_t shared, void *stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

int cudaLaunchKernelExC(const LaunchConfig *config, const void *function, void **arguments) {
  return cudaLaunchKernel(function, config->gridDim, config->blockDim, arguments,
                          config->dynamicSmemBytes, config->stream);
}

/* ---- what a kernel needs: the same for each ---- */

int cudaFuncGetAttributes(FunctionAttributes *attributes, const void *function) {
  UNUSED(function);
  NEED_CONTEXT;
  *attributes = (FunctionAttributes){
      .maxThreadsPerBlock = 1024,
      .numRegs = 32,
      .ptxVersion = sim_capability(),
      .binaryVersion = sim_capability(),
      .maxDynamicSharedSizeBytes = 49152,
  };
  return SIM_SUCCESS;
}

int cudaFuncSetAttribute(const void *function, int attribute, int value) {
  UNUSED(function, attribute, value);
  NEED_CONTEXT;
  return SIM_SUCCESS;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                           int threads, size_t shared,
                                                           unsigned flags) {
  UNUSED(function, shared, flags);
  NEED_CONTEXT;
  int by_threads = threads > 0 ? 2048 / threads : 0;
  *blocks = by_threads < 32 ? by_threads : 32;
  return SIM_SUCCESS;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                  size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared,
                                                                0);
}
