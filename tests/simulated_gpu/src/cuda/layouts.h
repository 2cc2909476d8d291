/* The structure of the driver that is read here, as cuda.h lays it out. */
#pragma once

typedef struct {
  int type, requestedHandleTypes;
  struct {
    int type, id;
  } location;
  void *win32HandleMetaData;
  struct {
    unsigned char compressionType, gpuDirectRDMACapable;
    unsigned short usage;
    unsigned char reserved[4];
  } allocFlags;
} AllocationProperties; /* CUmemAllocationProp_v1 */
