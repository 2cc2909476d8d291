/* Compares our layouts and numbers with NVIDIA's public headers, where they are at hand:
 *
 *   gcc -fsyntax-only -I DIR... check_headers.c
 *
 * with the folders of cuda_runtime_api.h, cuda.h, nvml.h, cublasLt.h and cudnn.h (they are in the
 * packages nvidia-cuda-runtime, nvidia-cuda-crt, nvidia-nvml-dev, nvidia-cublas and
 * nvidia-cudnn-cu13). Nothing is built from it. */
#define __CUDA_FP16_H__ /* cublasLt.h asks for it without need, and it needs CCCL's headers */
#define __CUDA_BF16_H__
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cublasLt.h>
#include <cudnn.h>
#include <nvml.h>

#include "cublaslt/layouts.h"
#include "cuda/layouts.h"
#include "cudart/layouts.h"
#include "nvml/layouts.h"

#define SAME(ours, theirs, field)                                  \
  _Static_assert(offsetof(ours, field) == offsetof(theirs, field), \
                 #theirs "." #field " is elsewhere")
#define SAME_SIZE(ours, theirs) \
  _Static_assert(sizeof(ours) == sizeof(theirs), #theirs " has another size")
#define EQUAL(number, name) _Static_assert((number) == (int)(name), #name " is another number")

typedef struct cudaDeviceProp CudaDeviceProp;
SAME_SIZE(DeviceProperties, CudaDeviceProp);
SAME(DeviceProperties, CudaDeviceProp, uuid);
SAME(DeviceProperties, CudaDeviceProp, totalGlobalMem);
SAME(DeviceProperties, CudaDeviceProp, regsPerBlock);
SAME(DeviceProperties, CudaDeviceProp, maxGridSize);
SAME(DeviceProperties, CudaDeviceProp, major);
SAME(DeviceProperties, CudaDeviceProp, multiProcessorCount);
SAME(DeviceProperties, CudaDeviceProp, surfaceAlignment);
SAME(DeviceProperties, CudaDeviceProp, pciBusID);
SAME(DeviceProperties, CudaDeviceProp, l2CacheSize);
SAME(DeviceProperties, CudaDeviceProp, maxThreadsPerMultiProcessor);
SAME(DeviceProperties, CudaDeviceProp, sharedMemPerMultiprocessor);
SAME(DeviceProperties, CudaDeviceProp, cooperativeLaunch);
SAME(DeviceProperties, CudaDeviceProp, sharedMemPerBlockOptin);
SAME(DeviceProperties, CudaDeviceProp, maxBlocksPerMultiProcessor);
SAME(DeviceProperties, CudaDeviceProp, reservedSharedMemPerBlock);
SAME(DeviceProperties, CudaDeviceProp, memoryPoolsSupported);
SAME(DeviceProperties, CudaDeviceProp, clusterLaunch);

typedef struct cudaPointerAttributes CudaPointerAttributes;
SAME_SIZE(PointerAttributes, CudaPointerAttributes);
SAME(PointerAttributes, CudaPointerAttributes, hostPointer);

typedef struct cudaFuncAttributes CudaFuncAttributes;
SAME_SIZE(FunctionAttributes, CudaFuncAttributes);
SAME(FunctionAttributes, CudaFuncAttributes, binaryVersion);
SAME(FunctionAttributes, CudaFuncAttributes, maxDynamicSharedSizeBytes);

SAME_SIZE(LaunchConfig, cudaLaunchConfig_t);
SAME(LaunchConfig, cudaLaunchConfig_t, dynamicSmemBytes);
SAME(LaunchConfig, cudaLaunchConfig_t, stream);

SAME_SIZE(AllocationProperties, CUmemAllocationProp);
SAME(AllocationProperties, CUmemAllocationProp, location.id);

SAME_SIZE(HeuristicResult, cublasLtMatmulHeuristicResult_t);
SAME(HeuristicResult, cublasLtMatmulHeuristicResult_t, workspaceSize);
SAME(HeuristicResult, cublasLtMatmulHeuristicResult_t, state);

SAME_SIZE(Memory, nvmlMemory_t);
SAME_SIZE(Memory2, nvmlMemory_v2_t);
SAME(Memory2, nvmlMemory_v2_t, used);
SAME_SIZE(ProcessInfo1, nvmlProcessInfo_v1_t);
SAME_SIZE(ProcessInfo, nvmlProcessInfo_t);
SAME(ProcessInfo, nvmlProcessInfo_t, gpuInstanceId);
SAME_SIZE(PciInfo, nvmlPciInfo_t);
SAME(PciInfo, nvmlPciInfo_t, busId);

/* The rest is written where it is used; these are the numbers on which most depends. */
EQUAL(1, cudaErrorInvalidValue);
EQUAL(2, cudaErrorMemoryAllocation);
EQUAL(3, cudaErrorInitializationError);
EQUAL(9, cudaErrorInvalidConfiguration);
EQUAL(46, cudaErrorDevicesUnavailable);
EQUAL(98, cudaErrorInvalidDeviceFunction);
EQUAL(100, cudaErrorNoDevice);
EQUAL(400, cudaErrorInvalidResourceHandle);
EQUAL(500, cudaErrorSymbolNotFound);
EQUAL(600, cudaErrorNotReady);
EQUAL(700, cudaErrorIllegalAddress);
EQUAL(704, cudaErrorPeerAccessAlreadyEnabled);
EQUAL(710, cudaErrorAssert);
EQUAL(714, cudaErrorHardwareStackError);
EQUAL(719, cudaErrorLaunchFailure);
EQUAL(801, cudaErrorNotSupported);
EQUAL(900, cudaErrorStreamCaptureUnsupported);
EQUAL(901, cudaErrorStreamCaptureInvalidated);
EQUAL(33, cudaDevAttrPciBusId);
EQUAL(38, cudaDevAttrL2CacheSize);
EQUAL(75, cudaDevAttrComputeCapabilityMajor);
EQUAL(97, cudaDevAttrMaxSharedMemoryPerBlockOptin);
EQUAL(102, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
EQUAL(120, cudaDevAttrClusterLaunch);
EQUAL(5, cudaMemPoolAttrReservedMemCurrent);
EQUAL(2, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
EQUAL(9, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
EQUAL(-2, cudaInvalidDeviceId);
EQUAL(2, cudaEventDisableTiming);
EQUAL(2, cudaStreamCaptureStatusInvalidated);
EQUAL(13, CUBLAS_STATUS_EXECUTION_FAILED);
EQUAL(3000, CUDNN_STATUS_NOT_SUPPORTED);
EQUAL(5000, CUDNN_STATUS_EXECUTION_FAILED);
EQUAL(4003, CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED);
EQUAL(202, CUDNN_ATTR_ENGINEHEUR_RESULTS);
EQUAL(402, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
EQUAL(802, CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT);
EQUAL(1301, CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
EQUAL(2, CUDNN_LSTM);
EQUAL(1, CUDNN_BIDIRECTIONAL);
EQUAL(2, CUDNN_RNN_DOUBLE_BIAS);
EQUAL(9, CUDNN_DATA_BFLOAT16);
EQUAL(6, NVML_ERROR_NOT_FOUND);
EQUAL(7, NVML_ERROR_INSUFFICIENT_SIZE);
EQUAL(3, NVML_COMPUTEMODE_EXCLUSIVE_PROCESS);
EQUAL(1, NVML_CLOCK_SM);
