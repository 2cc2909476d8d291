/* How the functions of the runtime begin, and how they fail. */
#pragma once
#include "../model/model.h"

int sim_runtime_error(int code); /* keeps it as the thread's last error, and returns it */

/* Leave with the call's error where it has one. */
#define TRY(call)                               \
  do {                                          \
    int code_ = (call);                         \
    if (code_) return sim_runtime_error(code_); \
  } while (0)

/* Every function that needs the driver begins with one of these: any call starts it. */
#define NEED_DRIVER              \
  do {                           \
    TRY(sim_injected(__func__)); \
    TRY(sim_start());            \
  } while (0)
#define NEED_CONTEXT             \
  do {                           \
    TRY(sim_injected(__func__)); \
    TRY(sim_enter(NULL));        \
  } while (0)
#define NEED_DEVICE(device)      \
  sim_device *device = NULL;     \
  do {                           \
    TRY(sim_injected(__func__)); \
    TRY(sim_enter(&device));     \
  } while (0)
