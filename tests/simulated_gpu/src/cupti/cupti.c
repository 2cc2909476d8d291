/* CUPTI, as it is for a user without the right to profile: it refuses, and torch's profiler keeps
 * to the host. The functions that are not here are generated, and refuse. Numbers: cupti_result.h.
 */

enum { CUPTI_SUCCESS = 0, CUPTI_ERROR_INSUFFICIENT_PRIVILEGES = 35 };

int cuptiGetVersion(unsigned *version) {
  *version = CUDA_VERSION * 10;
  return CUPTI_SUCCESS;
}

int cuptiGetResultString(int code, const char **text) {
  *text = code == CUPTI_ERROR_INSUFFICIENT_PRIVILEGES ? "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
                                                      : "CUPTI_SUCCESS";
  return CUPTI_SUCCESS;
}
