/* cuDNN's batch normalization: it needs no workspace and keeps nothing for backward. Its functions
 * that compute are generated: each is one call of sim_cudnn_work. */
#include "cudnn.h"

int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int operations,
                                                             void *x, void *z, void *y, void *scale,
                                                             void *activation, size_t *size) {
  UNUSED(handle, mode, operations, x, z, y, scale, activation);
  *size = 0;
  return CUDNN_SUCCESS;
}

int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int operations,
                                                      void *x, void *y, void *dy, void *dz,
                                                      void *dx, void *scale, void *activation,
                                                      size_t *size) {
  UNUSED(handle, mode, operations, x, y, dy, dz, dx, scale, activation);
  *size = 0;
  return CUDNN_SUCCESS;
}

int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operations,
                                                         void *activation, void *x, size_t *size) {
  UNUSED(handle, mode, operations, activation, x);
  *size = 0;
  return CUDNN_SUCCESS;
}
