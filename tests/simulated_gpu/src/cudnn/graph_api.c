/* cuDNN's graph API, by which torch does convolutions and attention: every problem has one engine,
 * whose workspace is SIMULATED_CUDA_CUDNN_WORKSPACE_BYTES. */
#include "cudnn.h"

#include <stdlib.h>

/* cudnnBackendAttributeName_t and cudnnBackendAttributeType_t */
enum {
  ENGINEHEUR_RESULTS = 202,
  ENGINECFG_ENGINE = 300,
  ENGINECFG_WORKSPACE_SIZE = 303,
  ENGINECFG_SHARED_MEMORY_USED = 304,
  EXECUTION_PLAN_WORKSPACE_SIZE = 402,
  OPERATIONGRAPH_ENGINE_GLOBAL_COUNT = 802,
  ENGINE_GLOBAL_INDEX = 1301,
};

int cudnnBackendCreateDescriptor(int kind, void **made) {
  UNUSED(kind);
  return sim_cudnn_make(made);
}

int cudnnBackendDestroyDescriptor(void *descriptor) { return sim_cudnn_free(descriptor); }
int cudnnBackendSetAttribute(void) { return CUDNN_SUCCESS; }
int cudnnBackendFinalize(void) { return CUDNN_SUCCESS; }

int cudnnBackendGetAttribute(void *descriptor, int attribute, int type, int64_t requested,
                             int64_t *count, void *values) {
  UNUSED(descriptor, type);
  int wanted = requested > 0 && values;
  int64_t found = 1;
  switch (attribute) {
    case ENGINEHEUR_RESULTS: /* the one engine: the caller's own descriptor will do for it */
    case ENGINECFG_ENGINE: break;
    case ENGINECFG_WORKSPACE_SIZE:
    case EXECUTION_PLAN_WORKSPACE_SIZE:
      if (wanted) *(int64_t *)values = (int64_t)sim_number("CUDNN_WORKSPACE_BYTES", 0);
      break;
    case ENGINECFG_SHARED_MEMORY_USED:
      if (wanted) *(int32_t *)values = 0;
      break;
    case OPERATIONGRAPH_ENGINE_GLOBAL_COUNT:
    case ENGINE_GLOBAL_INDEX:
      if (wanted) *(int64_t *)values = 0;
      break;
    default: found = 0; /* no notes and nothing to choose */
  }
  if (count) *count = found;
  return CUDNN_SUCCESS;
}

int cudnnBackendExecute(Handle *handle) { return sim_cudnn_work(handle, __func__); }
