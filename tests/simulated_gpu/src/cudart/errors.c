/* Errors of the runtime: the last of each thread, and those that outlast their call. */
#include "runtime.h"

static __thread int last_error;

/* A failed kernel leaves the context broken: every later call of the process fails in the same way.
 */
static int outlasts(int code) {
  return code == SIM_ILLEGAL_ADDRESS || code == SIM_ASSERT ||
         (code >= 714 && code <= SIM_LAUNCH_FAILURE);
}

int sim_runtime_error(int code) {
  if (code == SIM_SUCCESS || code == SIM_NOT_READY) return code;
  if (outlasts(code)) sim_break(code);
  last_error = code;
  return code;
}

int cudaPeekAtLastError(void) { return last_error; }

int cudaGetLastError(void) {
  int code = last_error;
  if (!outlasts(code)) last_error = SIM_SUCCESS;
  return code;
}

const char *cudaGetErrorName(int code) { return sim_error_name(code); }
const char *cudaGetErrorString(int code) { return sim_error_text(code); }
