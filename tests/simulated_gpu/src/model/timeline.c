/* Time on the cards: each stream is busy until some moment of the host's monotonic clock.
 *
 * A launch moves that moment on by what it takes; an event is that moment; a query compares it with
 * now; to synchronize is to sleep until it. A stream remembers when its latest launches end: one more
 * than the queue holds waits for the oldest of them, and so makes the host wait. */
#include "model.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SPIN_NS 200000u /* a sleep may end so much too late: the rest is waited for awake */

typedef struct {
  sim_kernel *kernel;
  uint64_t ns;
} Node;

struct sim_graph {
  Node *nodes;
  size_t count, room;
  uint64_t id;
  int open; /* 1 while it is captured */
  int invalid;
  int streams; /* that hold it as their capture, besides its owner */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

uint64_t sim_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sim_wait_until(uint64_t then_ns) {
  for (uint64_t now; (now = sim_now_ns()) < then_ns;) {
    if (then_ns - now < SPIN_NS) continue;
    uint64_t rest = then_ns - now - SPIN_NS / 2;
    nanosleep(&(struct timespec){(time_t)(rest / 1000000000u), (long)(rest % 1000000000u)}, NULL);
  }
}

sim_stream *sim_stream_of(void *handle) {
  return (uintptr_t)handle > 2 ? handle : &sim_device_at(sim_current_ordinal())->default_stream;
}

/* Put so much work at a stream's end; return when it is done. */
static uint64_t enqueue(sim_stream *stream, uint64_t ns) {
  pthread_mutex_lock(&lock);
  uint64_t now = sim_now_ns(), begin = stream->busy_until_ns > now ? stream->busy_until_ns : now;
  uint64_t *slot = &stream->ends_ns[stream->launches++ % SIM_QUEUE_LENGTH], slot_free_ns = *slot;
  *slot = stream->busy_until_ns = begin + ns;
  uint64_t end = begin + ns;
  if (stream->device->busy_until_ns < end) stream->device->busy_until_ns = end;
  pthread_mutex_unlock(&lock);
  if (slot_free_ns > now) sim_wait_until(slot_free_ns);
  return end;
}

/* ---- graphs: launches that are kept instead of done ---- */

static int append(sim_graph *graph, Node node) {
  if (graph->count == graph->room) {
    size_t room = graph->room ? 2 * graph->room : 64;
    Node *nodes = realloc(graph->nodes, room * sizeof *nodes);
    if (!nodes) return SIM_OUT_OF_MEMORY;
    graph->nodes = nodes;
    graph->room = room;
  }
  graph->nodes[graph->count++] = node;
  return SIM_SUCCESS;
}

/* Return what the stream records into, if it still does: a graph that has ended lets go of its streams. */
static sim_graph *capture_of(sim_stream *stream) {
  sim_graph *graph = stream->capture;
  if (graph && !graph->open) {
    stream->capture = NULL;
    if (!--graph->streams) sim_graph_free(graph);
    return NULL;
  }
  return graph;
}

int sim_begin_capture(sim_stream *stream, sim_graph **made) {
  static uint64_t last_id;
  if (capture_of(stream)) return SIM_CAPTURE_UNSUPPORTED;
  sim_graph *graph = calloc(1, sizeof *graph);
  if (!graph) return SIM_OUT_OF_MEMORY;
  graph->id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED);
  graph->open = graph->streams = 1;
  stream->capture = *made = graph;
  return SIM_SUCCESS;
}

int sim_join_capture(sim_stream *stream, sim_graph *graph) {
  if (capture_of(stream) || !graph->open) return SIM_SUCCESS;
  graph->streams++;
  stream->capture = graph;
  return SIM_SUCCESS;
}

int sim_end_capture(sim_stream *stream, sim_graph **ended) {
  sim_graph *graph = capture_of(stream);
  *ended = NULL;
  if (!graph) return SIM_INVALID_VALUE;
  int invalid = graph->invalid;
  if (!invalid) *ended = sim_graph_copy(graph);
  graph->open = 0;
  capture_of(stream);
  return invalid ? SIM_CAPTURE_INVALIDATED : *ended ? SIM_SUCCESS : SIM_OUT_OF_MEMORY;
}

size_t sim_graph_size(const sim_graph *graph) { return graph->count; }
uint64_t sim_graph_id(const sim_graph *graph) { return graph->id; }
int sim_graph_invalid(const sim_graph *graph) { return graph->invalid; }
void sim_invalidate(sim_graph *graph) { graph->invalid = 1; }

sim_graph *sim_graph_copy(const sim_graph *graph) {
  sim_graph *copy = calloc(1, sizeof *copy);
  if (!copy) return NULL;
  copy->id = graph->id;
  for (size_t i = 0; i < graph->count; i++) {
    if (append(copy, graph->nodes[i])) {
      sim_graph_free(copy);
      return NULL;
    }
  }
  return copy;
}

void sim_graph_free(sim_graph *graph) {
  if (!graph) return;
  free(graph->nodes);
  free(graph);
}

/* One launch for the host, all of its kernels for the card. */
int sim_graph_run(const sim_graph *graph, void *handle) {
  sim_stream *stream = sim_stream_of(handle);
  uint64_t total_ns = 0;
  for (size_t i = 0; i < graph->count; i++) {
    sim_count(graph->nodes[i].kernel, stream, graph->nodes[i].ns);
    total_ns += graph->nodes[i].ns;
  }
  enqueue(stream, total_ns);
  return SIM_SUCCESS;
}

/* ---- launches and events ---- */

int sim_submit(void *handle, sim_kernel *kernel, uint64_t ns) {
  int code = sim_enter(NULL);
  if (code) return code;
  sim_stream *stream = sim_stream_of(handle);
  uint64_t launch_ns = sim_number("LAUNCH_NS", 0);
  if (launch_ns) {
    uint64_t done = sim_now_ns() + launch_ns;
    while (sim_now_ns() < done) continue; /* awake: it is the host's work */
  }
  sim_graph *capture = capture_of(stream);
  if (capture) return append(capture, (Node){kernel, ns});
  sim_count(kernel, stream, ns);
  uint64_t end_ns = enqueue(stream, ns);
  const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
  if (blocking && !strcmp(blocking, "1")) sim_wait_until(end_ns);
  return SIM_SUCCESS;
}

uint64_t sim_mark(sim_stream *stream) { return enqueue(stream, 0); } /* an event takes a place in the queue too */

int sim_wait_stream(sim_stream *stream) {
  sim_graph *capture = capture_of(stream);
  if (capture) {
    capture->invalid = 1;
    return SIM_CAPTURE_UNSUPPORTED;
  }
  sim_wait_until(stream->busy_until_ns);
  return SIM_SUCCESS;
}
