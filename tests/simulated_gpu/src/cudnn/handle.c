/* cuDNN's handles, versions and the descriptors that keep nothing. */
#include "cudnn.h"

#include <stdio.h>
#include <stdlib.h>

size_t cudnnGetVersion(void) { return CUDNN_MAJOR * 10000 + CUDNN_MINOR * 100 + CUDNN_PATCH; }
size_t cudnnGetCudartVersion(void) { return CUDA_VERSION; }

/* libraryPropertyType in library_types.h: 0 major, 1 minor, 2 patch */
int cudnnGetProperty(int which, int *value) {
  const int version[] = {CUDNN_MAJOR, CUDNN_MINOR, CUDNN_PATCH};
  *value = version[which];
  return CUDNN_SUCCESS;
}

const char *cudnnGetErrorString(int code) {
  switch (code) {
    case CUDNN_SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case CUDNN_NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case CUDNN_ALLOC_FAILED: return "CUDNN_STATUS_ALLOC_FAILED";
    case CUDNN_EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_STATUS_INTERNAL_ERROR";
  }
}

void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "not simulated"); }

int cudnnCreate(Handle **made) {
  int code = sim_injected(__func__);
  if (code) return code;
  return (*made = calloc(1, sizeof **made)) ? CUDNN_SUCCESS : CUDNN_ALLOC_FAILED;
}

int cudnnSetStream(Handle *handle, void *stream) {
  handle->stream = stream;
  return CUDNN_SUCCESS;
}

int cudnnGetStream(const Handle *handle, void **stream) {
  *stream = handle->stream;
  return CUDNN_SUCCESS;
}

int sim_cudnn_work(Handle *handle, const char *function) {
  int code = sim_injected(function);
  if (code) return code;
  return sim_work(handle->stream, function) ? CUDNN_EXECUTION_FAILED : CUDNN_SUCCESS;
}

int sim_cudnn_make(void **made) {
  return (*made = calloc(1, 64)) ? CUDNN_SUCCESS : CUDNN_ALLOC_FAILED;
}

int sim_cudnn_free(void *made) {
  free(made);
  return CUDNN_SUCCESS;
}
