/* What the files of cuDNN's stand-in share. Layouts and numbers of all of them: cudnn_graph.h,
 * cudnn_ops.h and cudnn_adv.h of cuDNN 9. */
#pragma once
#include "../model/model.h"

enum {
  CUDNN_SUCCESS = 0,
  CUDNN_ALLOC_FAILED = 4003,
  CUDNN_NOT_SUPPORTED = 3000,
  CUDNN_EXECUTION_FAILED = 5000
};

typedef struct {
  void *stream;
} Handle;

int sim_cudnn_work(Handle *handle, const char *function); /* a kernel on the handle's stream */
int sim_cudnn_make(void **made);                          /* a descriptor that keeps nothing */
int sim_cudnn_free(void *made);
