/* Settings: environment variables, read live, so that a test can change them within a process. */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>

const char *sim_text(const char *name) {
  char full[64];
  snprintf(full, sizeof full, "SIMULATED_CUDA_%s", name);
  const char *text = getenv(full);
  return text ? text : "";
}

uint64_t sim_number(const char *name, uint64_t otherwise) {
  const char *text = sim_text(name);
  char *unit;
  double value = strtod(text, &unit); /* takes 1.5G and 0x44 too */
  if (unit == text) return otherwise;
  switch (*unit) {
    case 'K': return (uint64_t)(value * 1024);
    case 'M': return (uint64_t)(value * 1024 * 1024);
    case 'G': return (uint64_t)(value * 1024 * 1024 * 1024);
    default: return (uint64_t)value;
  }
}
