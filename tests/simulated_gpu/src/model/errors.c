/* Errors that the runtime and the driver have in common, with their names and texts.
 * Numbers: cudaError in driver_types.h, which are those of CUresult in cuda.h. */
#include "model.h"

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {SIM_SUCCESS, "cudaSuccess", "no error"},
    {SIM_INVALID_VALUE, "cudaErrorInvalidValue", "invalid argument"},
    {SIM_OUT_OF_MEMORY, "cudaErrorMemoryAllocation", "out of memory"},
    {SIM_INITIALIZATION_ERROR, "cudaErrorInitializationError", "initialization error"},
    {9, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {35, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {SIM_DEVICES_UNAVAILABLE, "cudaErrorDevicesUnavailable",
     "CUDA-capable device(s) is/are busy or unavailable"},
    {98, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {SIM_NO_DEVICE, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {SIM_INVALID_DEVICE, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {209, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {214, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {SIM_INVALID_HANDLE, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {SIM_NOT_FOUND, "cudaErrorSymbolNotFound", "named symbol not found"},
    {SIM_NOT_READY, "cudaErrorNotReady", "device not ready"},
    {SIM_ILLEGAL_ADDRESS, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {701, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {704, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {SIM_ASSERT, "cudaErrorAssert", "device-side assert triggered"},
    {716, "cudaErrorMisalignedAddress", "misaligned address"},
    {SIM_LAUNCH_FAILURE, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {SIM_NOT_SUPPORTED, "cudaErrorNotSupported", "operation not supported"},
    {803, "cudaErrorSystemDriverMismatch",
     "system has unsupported display driver / cuda driver combination"},
    {SIM_CAPTURE_UNSUPPORTED, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {SIM_CAPTURE_INVALIDATED, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const char *sim_error_name(int code) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) return errors[i].name;
  return "cudaErrorUnknown";
}

const char *sim_error_text(int code) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) return errors[i].text;
  return "unknown error";
}
