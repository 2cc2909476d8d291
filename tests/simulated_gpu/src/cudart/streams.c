/* Streams and events of the runtime, on the clock of model/timeline.c. */
#include "runtime.h"

#include <stdlib.h>

#define DISABLE_TIMING 2u /* cudaEventDisableTiming in driver_types.h */

typedef struct {
  unsigned flags;
  int recorded;
  uint64_t at_ns;
  uint64_t capture_id; /* of the graph that it was recorded into, or 0 */
} Event;

/* ---- streams ---- */

int cudaStreamCreateWithPriority(sim_stream **made, unsigned flags, int priority) {
  NEED_DEVICE(device);
  sim_stream *stream = calloc(1, sizeof *stream);
  TRY(stream ? SIM_SUCCESS : SIM_OUT_OF_MEMORY);
  stream->device = device;
  stream->flags = flags;
  stream->priority = priority < -5 ? -5 : priority > 0 ? 0 : priority;
  *made = stream;
  return SIM_SUCCESS;
}

int cudaStreamCreateWithFlags(sim_stream **made, unsigned flags) {
  return cudaStreamCreateWithPriority(made, flags, 0);
}
int cudaStreamCreate(sim_stream **made) { return cudaStreamCreateWithPriority(made, 0, 0); }

int cudaStreamDestroy(sim_stream *stream) {
  free(stream);
  return SIM_SUCCESS;
}

int cudaStreamGetPriority(void *stream, int *priority) {
  NEED_CONTEXT;
  *priority = sim_stream_of(stream)->priority;
  return SIM_SUCCESS;
}

int cudaStreamQuery(void *handle) {
  NEED_CONTEXT;
  sim_stream *stream = sim_stream_of(handle);
  if (sim_capture_of(stream)) TRY(sim_wait_stream(stream));
  return stream->busy_until_ns > sim_now_ns() ? SIM_NOT_READY : SIM_SUCCESS;
}

int cudaStreamSynchronize(void *stream) {
  NEED_CONTEXT;
  TRY(sim_wait_stream(sim_stream_of(stream)));
  return SIM_SUCCESS;
}

int cudaStreamWaitEvent(void *handle, Event *event, unsigned flags) {
  UNUSED(flags);
  NEED_CONTEXT;
  sim_stream *stream = sim_stream_of(handle);
  if (event->capture_id)
    sim_join_capture(stream, event->capture_id);
  else
    sim_hold_until(stream, event->at_ns);
  return SIM_SUCCESS;
}

/* The function runs in the calling thread, once what was before it is done. */
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
  int code = cudaStreamSynchronize(stream);
  if (!code) function(data);
  return code;
}

int cudaStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data,
                          unsigned flags) {
  UNUSED(flags);
  int code = cudaStreamSynchronize(stream);
  if (!code) function(stream, SIM_SUCCESS, data);
  return code;
}

/* ---- events ---- */

int cudaEventCreateWithFlags(Event **made, unsigned flags) {
  NEED_CONTEXT;
  Event *event = calloc(1, sizeof *event);
  TRY(event ? SIM_SUCCESS : SIM_OUT_OF_MEMORY);
  event->flags = flags;
  *made = event;
  return SIM_SUCCESS;
}

int cudaEventCreate(Event **made) { return cudaEventCreateWithFlags(made, 0); }

int cudaEventDestroy(Event *event) {
  free(event);
  return SIM_SUCCESS;
}

int cudaEventRecordWithFlags(Event *event, void *handle, unsigned flags) {
  UNUSED(flags);
  NEED_CONTEXT;
  sim_stream *stream = sim_stream_of(handle);
  event->capture_id = sim_capture_of(stream) ? stream->capture_id : 0;
  if (event->capture_id) return SIM_SUCCESS;
  event->at_ns = sim_mark(stream);
  event->recorded = 1;
  return SIM_SUCCESS;
}

int cudaEventRecord(Event *event, void *stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

int cudaEventQuery(Event *event) {
  NEED_CONTEXT;
  return event->at_ns > sim_now_ns() ? SIM_NOT_READY : SIM_SUCCESS;
}

int cudaEventSynchronize(Event *event) {
  NEED_CONTEXT;
  sim_wait_until(event->at_ns);
  return SIM_SUCCESS;
}

int cudaEventElapsedTime(float *ms, Event *from, Event *to) {
  NEED_CONTEXT;
  int usable = !((from->flags | to->flags) & DISABLE_TIMING) && from->recorded && to->recorded;
  TRY(usable ? SIM_SUCCESS : SIM_INVALID_HANDLE);
  uint64_t now = sim_now_ns();
  if (from->at_ns > now || to->at_ns > now) return SIM_NOT_READY;
  *ms = (float)((double)((int64_t)to->at_ns - (int64_t)from->at_ns) / 1e6);
  return SIM_SUCCESS;
}
