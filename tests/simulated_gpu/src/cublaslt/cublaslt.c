/* cuBLASLt: every problem has one algorithm, which needs no workspace. Numbers: cublas_api.h. */
#include "../model/model.h"
#include "layouts.h"

#include <stdlib.h>

enum { CUBLAS_SUCCESS = 0, CUBLAS_ALLOC_FAILED = 3, CUBLAS_EXECUTION_FAILED = 13 };

/* Descriptors keep nothing: a product's shape makes no difference. */
static int make_descriptor(void **made) {
  return (*made = calloc(1, 64)) ? CUBLAS_SUCCESS : CUBLAS_ALLOC_FAILED;
}

static int free_descriptor(void *descriptor) {
  free(descriptor);
  return CUBLAS_SUCCESS;
}

size_t cublasLtGetVersion(void) { return CUDA_VERSION * 10; }

int cublasLtMatmulDescCreate(void **made) { return make_descriptor(made); }
int cublasLtMatmulDescDestroy(void *descriptor) { return free_descriptor(descriptor); }
int cublasLtMatmulDescSetAttribute(void) { return CUBLAS_SUCCESS; }
int cublasLtMatrixLayoutCreate(void **made) { return make_descriptor(made); }
int cublasLtMatrixLayoutDestroy(void *descriptor) { return free_descriptor(descriptor); }
int cublasLtMatrixLayoutSetAttribute(void) { return CUBLAS_SUCCESS; }
int cublasLtMatmulPreferenceCreate(void **made) { return make_descriptor(made); }
int cublasLtMatmulPreferenceDestroy(void *descriptor) { return free_descriptor(descriptor); }
int cublasLtMatmulPreferenceSetAttribute(void) { return CUBLAS_SUCCESS; }

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *description, void *a, void *b, void *c,
                                   void *d, void *preference, int requested,
                                   HeuristicResult *results, int *count) {
  UNUSED(handle, description, a, b, c, d, preference);
  *count = requested > 0;
  if (requested > 0) results[0] = (HeuristicResult){.state = CUBLAS_SUCCESS, .wavesCount = 1};
  return CUBLAS_SUCCESS;
}

int cublasLtMatmul(void *handle, void *description, void *alpha, void *a, void *a_layout, void *b,
                   void *b_layout, void *beta, void *c, void *c_layout, void *d, void *d_layout,
                   void *algorithm, void *workspace, size_t workspace_size, void *stream) {
  UNUSED(handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
         algorithm, workspace, workspace_size);
  int code = sim_injected(__func__);
  if (code) return code;
  return sim_work(stream, "cublasLtMatmul") ? CUBLAS_EXECUTION_FAILED : CUBLAS_SUCCESS;
}
