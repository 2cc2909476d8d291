/* Time on the cards: each stream is busy until some moment of the host's monotonic clock.
 *
 * A launch moves that moment on by what it takes; an event is that moment; a query compares it with
 * now; to synchronize is to sleep until it. A stream remembers when its latest launches end: one
 * more than the queue holds waits for the oldest of them, and so makes the host wait. */
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
  int invalid;
  sim_graph *next; /* of those that are being captured */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sim_graph *captures;

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

/* Streams and events know a capture by its number, which outlasts it. */
static sim_graph *capture_numbered(uint64_t id) {
  sim_graph *graph = captures;
  while (graph && graph->id != id) graph = graph->next;
  return graph;
}

sim_graph *sim_capture_of(const sim_stream *stream) {
  return stream->capture_id ? capture_numbered(stream->capture_id) : NULL;
}

int sim_begin_capture(sim_stream *stream) {
  static uint64_t last_id;
  if (sim_capture_of(stream)) return SIM_CAPTURE_UNSUPPORTED;
  sim_graph *graph = calloc(1, sizeof *graph);
  if (!graph) return SIM_OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  graph->id = stream->capture_id = ++last_id;
  graph->next = captures;
  captures = graph;
  pthread_mutex_unlock(&lock);
  return SIM_SUCCESS;
}

void sim_join_capture(sim_stream *stream, uint64_t id) {
  if (!sim_capture_of(stream)) stream->capture_id = id;
}

int sim_end_capture(sim_stream *stream, sim_graph **ended) {
  sim_graph *graph = sim_capture_of(stream);
  *ended = NULL;
  if (!graph) return SIM_INVALID_VALUE;
  pthread_mutex_lock(&lock);
  sim_graph **link = &captures;
  while (*link != graph) link = &(*link)->next;
  *link = graph->next;
  pthread_mutex_unlock(&lock);
  if (graph->invalid) {
    sim_graph_free(graph);
    return SIM_CAPTURE_INVALIDATED;
  }
  *ended = graph;
  return SIM_SUCCESS;
}

size_t sim_graph_size(const sim_graph *graph) { return graph->count; }
uint64_t sim_graph_id(const sim_graph *graph) { return graph->id; }
int sim_graph_invalid(const sim_graph *graph) { return graph->invalid; }

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

/* What a launch takes of the host. It stays awake: it is the host's work. */
static void launch(void) {
  uint64_t launch_ns = sim_number("LAUNCH_NS", 0);
  uint64_t done_ns = launch_ns ? sim_now_ns() + launch_ns : 0;
  while (done_ns && sim_now_ns() < done_ns) continue;
}

/* One launch for the host, all of its kernels for the card. */
int sim_graph_run(const sim_graph *graph, void *handle) {
  sim_stream *stream = sim_stream_of(handle);
  launch();
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
  launch();
  sim_graph *capture = sim_capture_of(stream);
  if (capture) return append(capture, (Node){kernel, ns});
  sim_count(kernel, stream, ns);
  uint64_t end_ns = enqueue(stream, ns);
  const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
  if (blocking && !strcmp(blocking, "1")) sim_wait_until(end_ns);
  return SIM_SUCCESS;
}

/* An event takes no time, but a place in the queue. */
uint64_t sim_mark(sim_stream *stream) { return enqueue(stream, 0); }

void sim_hold_until(sim_stream *stream, uint64_t then_ns) {
  pthread_mutex_lock(&lock);
  if (stream->busy_until_ns < then_ns) stream->busy_until_ns = then_ns;
  if (stream->device->busy_until_ns < then_ns) stream->device->busy_until_ns = then_ns;
  pthread_mutex_unlock(&lock);
}

int sim_wait_stream(sim_stream *stream) {
  sim_graph *capture = sim_capture_of(stream);
  if (capture) {
    capture->invalid = 1;
    return SIM_CAPTURE_UNSUPPORTED;
  }
  sim_wait_until(stream->busy_until_ns);
  return SIM_SUCCESS;
}
