/* CUDA graphs of the runtime: launches that were captured on streams, and are run again as one. */
#include "runtime.h"

#include <stdint.h>

int cudaStreamBeginCapture(void *handle, int mode) {
  UNUSED(mode);
  NEED_CONTEXT;
  TRY(sim_begin_capture(sim_stream_of(handle)));
  return SIM_SUCCESS;
}

int cudaStreamEndCapture(void *handle, sim_graph **graph) {
  NEED_CONTEXT;
  TRY(sim_end_capture(sim_stream_of(handle), graph));
  return SIM_SUCCESS;
}

/* cudaStreamCaptureStatus in driver_types.h: 0 none, 1 active, 2 invalidated */
static int status_of(const sim_graph *graph) {
  return !graph ? 0 : sim_graph_invalid(graph) ? 2 : 1;
}

int cudaStreamIsCapturing(void *handle, int *status) {
  NEED_CONTEXT;
  *status = status_of(sim_capture_of(sim_stream_of(handle)));
  return SIM_SUCCESS;
}

int cudaStreamGetCaptureInfo(void *handle, int *status, unsigned long long *id, sim_graph **graph,
                             const void **nodes, const void **edges, size_t *count) {
  NEED_CONTEXT;
  sim_graph *capture = sim_capture_of(sim_stream_of(handle));
  *status = status_of(capture);
  if (id) *id = capture ? sim_graph_id(capture) : 0;
  if (graph) *graph = capture;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (count) *count = 0;
  return SIM_SUCCESS;
}

int cudaThreadExchangeStreamCaptureMode(int *mode) {
  static __thread int own;
  int before = own;
  own = *mode;
  *mode = before;
  return SIM_SUCCESS;
}

/* Nodes are counted, not handed out one by one. */
int cudaGraphGetNodes(const sim_graph *graph, void **nodes, size_t *count) {
  TRY(nodes ? sim_refuse(__func__, SIM_NOT_SUPPORTED) : SIM_SUCCESS);
  *count = sim_graph_size(graph);
  return SIM_SUCCESS;
}

int cudaGraphInstantiateWithFlags(sim_graph **made, const sim_graph *graph,
                                  unsigned long long flags) {
  UNUSED(flags);
  NEED_CONTEXT;
  *made = sim_graph_copy(graph);
  TRY(*made ? SIM_SUCCESS : SIM_OUT_OF_MEMORY);
  return SIM_SUCCESS;
}

int cudaGraphLaunch(const sim_graph *graph, void *stream) {
  NEED_CONTEXT;
  TRY(sim_graph_run(graph, stream));
  return SIM_SUCCESS;
}

int cudaGraphDestroy(sim_graph *graph) {
  sim_graph_free(graph);
  return SIM_SUCCESS;
}

int cudaGraphExecDestroy(sim_graph *graph) {
  sim_graph_free(graph);
  return SIM_SUCCESS;
}

int cudaDeviceGetGraphMemAttribute(int device, int attribute, unsigned long long *value) {
  UNUSED(device, attribute);
  *value = 0; /* no graph allocates */
  return SIM_SUCCESS;
}
