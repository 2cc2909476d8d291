/* Structures of NVML, as nvml.h lays them out; check_headers.c compares them where it is at hand.
 */
#pragma once

typedef struct {
  unsigned long long total, free, used;
} Memory; /* nvmlMemory_t */

typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} Memory2; /* nvmlMemory_v2_t */

typedef struct {
  unsigned pid;
  unsigned long long usedGpuMemory;
} ProcessInfo1; /* nvmlProcessInfo_v1_t */

typedef struct {
  unsigned pid;
  unsigned long long usedGpuMemory;
  unsigned gpuInstanceId, computeInstanceId;
} ProcessInfo; /* nvmlProcessInfo_t */

typedef struct {
  char busIdLegacy[16];
  unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} PciInfo; /* nvmlPciInfo_t */
