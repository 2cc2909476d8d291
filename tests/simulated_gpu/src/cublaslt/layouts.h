/* The structure of cuBLASLt that is filled in here, as cublasLt.h lays it out. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint64_t algo[8];
  size_t workspaceSize;
  int state;
  float wavesCount;
  int reserved[4];
} HeuristicResult; /* cublasLtMatmulHeuristicResult_t */
