/* Failures: those that a test asks for, and those of what the stand-in cannot do.
 *
 * SIMULATED_CUDA_FAIL is a list such as "cudaMalloc=2@3,nvmlDeviceGetTotalEnergyConsumption=3":
 * the third cudaMalloc returns 2, the energy counter always returns 3. */
#include "model.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  char function[96];
  int code;
  uint64_t at_call; /* counted from 1; 0: each call */
  uint64_t calls;
} Injection;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *parsed; /* the text that `injections` was made from */
static Injection injections[32];
static int injection_count;

static void parse(const char *text) {
  free(parsed);
  parsed = strdup(text);
  injection_count = 0;
  for (const char *entry = text; *entry && injection_count < 32;) {
    size_t length = strcspn(entry, ",");
    char word[160];
    snprintf(word, sizeof word, "%.*s", (int)length, entry);
    Injection *made = &injections[injection_count];
    memset(made, 0, sizeof *made);
    unsigned long long at_call = 0;
    if (sscanf(word, " %95[^=]=%d@%llu", made->function, &made->code, &at_call) >= 2) {
      made->at_call = at_call;
      injection_count++;
    } else {
      fprintf(stderr, "simulated CUDA: SIMULATED_CUDA_FAIL: no FUNCTION=CODE[@CALL]: %s\n", word);
    }
    entry += length + (entry[length] == ',');
  }
}

int sim_injected(const char *function) {
  const char *text = sim_text("FAIL");
  if (!*text) return 0;
  int code = 0;
  pthread_mutex_lock(&lock);
  if (!parsed || strcmp(parsed, text)) parse(text);
  for (int i = 0; i < injection_count; i++) {
    Injection *injection = &injections[i];
    if (strcmp(injection->function, function)) continue;
    injection->calls++;
    if (!injection->at_call || injection->at_call == injection->calls) code = injection->code;
  }
  pthread_mutex_unlock(&lock);
  return code;
}

int sim_refuse(const char *function, int code) {
  if (sim_number("VERBOSE", 0))
    fprintf(stderr, "simulated CUDA: %s is not simulated, it returns %d\n", function, code);
  return code;
}
