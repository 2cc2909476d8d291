/* cuBLAS: a handle knows its stream and its workspace; every product takes a kernel's time there.
 * The functions that are not here are generated: each is one call of sim_cublas_work. Numbers:
 * cublas_api.h. */
#include "../model/model.h"

#include <stdlib.h>

enum {
  CUBLAS_SUCCESS = 0,
  CUBLAS_ALLOC_FAILED = 3,
  CUBLAS_INVALID_VALUE = 7,
  CUBLAS_EXECUTION_FAILED = 13
};

typedef struct {
  void *stream;
  int math_mode, pointer_mode;
} Handle;

int cublasCreate_v2(Handle **made) {
  int code = sim_injected(__func__);
  if (code) return code;
  return (*made = calloc(1, sizeof **made)) ? CUBLAS_SUCCESS : CUBLAS_ALLOC_FAILED;
}

int cublasDestroy_v2(Handle *handle) {
  free(handle);
  return CUBLAS_SUCCESS;
}

int cublasSetStream_v2(Handle *handle, void *stream) {
  handle->stream = stream;
  return CUBLAS_SUCCESS;
}

/* The workspace is the caller's: torch allocates it, one for each handle and stream. */
int cublasSetWorkspace_v2(Handle *handle, const void *workspace, size_t size) {
  UNUSED(handle);
  int is_memory = !size || (sim_owner(workspace) && sim_host_view(workspace, size));
  return is_memory ? CUBLAS_SUCCESS : CUBLAS_INVALID_VALUE;
}

int cublasSetMathMode(Handle *handle, int mode) {
  handle->math_mode = mode;
  return CUBLAS_SUCCESS;
}

int cublasGetMathMode(Handle *handle, int *mode) {
  *mode = handle->math_mode;
  return CUBLAS_SUCCESS;
}

int cublasSetPointerMode_v2(Handle *handle, int mode) {
  handle->pointer_mode = mode;
  return CUBLAS_SUCCESS;
}

int cublasGetPointerMode_v2(Handle *handle, int *mode) {
  *mode = handle->pointer_mode;
  return CUBLAS_SUCCESS;
}

int sim_cublas_work(Handle *handle, const char *function) {
  int code = sim_injected(function);
  if (code) return code;
  return sim_work(handle->stream, function) ? CUBLAS_EXECUTION_FAILED : CUBLAS_SUCCESS;
}
