/* What a card is made of: an H100, unless the settings say otherwise.
 * Numbers: cudaDeviceAttr in driver_types.h, which are those of CUdevice_attribute in cuda.h. */
#include "model.h"

int sim_attribute(const sim_device *device, int attribute) {
  switch (attribute) {
    case 1: return 1024;                           /* MaxThreadsPerBlock */
    case 2: return 1024;                           /* MaxBlockDimX */
    case 3: return 1024;                           /* MaxBlockDimY */
    case 4: return 64;                             /* MaxBlockDimZ */
    case 5: return 0x7fffffff;                     /* MaxGridDimX */
    case 6: return 65535;                          /* MaxGridDimY */
    case 7: return 65535;                          /* MaxGridDimZ */
    case 8: return 49152;                          /* MaxSharedMemoryPerBlock */
    case 9: return 65536;                          /* TotalConstantMemory */
    case 10: return 32;                            /* WarpSize */
    case 11: return 0x7fffffff;                    /* MaxPitch */
    case 12: return 65536;                         /* MaxRegistersPerBlock */
    case 13: return sim_clock_mhz() * 1000;        /* ClockRate, kHz */
    case 14: return 512;                           /* TextureAlignment */
    case 15: return 1;                             /* GpuOverlap */
    case 16: return sim_multiprocessors();         /* MultiProcessorCount */
    case 19: return 1;                             /* CanMapHostMemory */
    case 30: return 512;                           /* SurfaceAlignment */
    case 31: return 1;                             /* ConcurrentKernels */
    case 33: return sim_pci_bus(device->physical); /* PciBusId; PciDeviceId and PciDomainId are 0 */
    case 36: return 2619000;                       /* MemoryClockRate, kHz */
    case 37: return 5120;                          /* GlobalMemoryBusWidth */
    case 38: return (int)sim_l2_bytes();           /* L2CacheSize */
    case 39: return 2048;                          /* MaxThreadsPerMultiProcessor */
    case 40: return 3;                             /* AsyncEngineCount */
    case 41: return 1;                             /* UnifiedAddressing */
    case 51: return 32;                            /* TexturePitchAlignment */
    case 75: return sim_capability() / 10;         /* ComputeCapabilityMajor */
    case 76: return sim_capability() % 10;         /* ComputeCapabilityMinor */
    case 78: return 1;                             /* StreamPrioritiesSupported */
    case 79: return 1;                             /* GlobalL1CacheSupported */
    case 80: return 1;                             /* LocalL1CacheSupported */
    case 81: return 233472;                        /* MaxSharedMemoryPerMultiprocessor */
    case 82: return 65536;                         /* MaxRegistersPerMultiprocessor */
    case 83: return 1;                             /* ManagedMemory */
    case 87: return 2;                             /* SingleToDoublePrecisionPerfRatio */
    case 90: return 1;                             /* ComputePreemptionSupported */
    case 95: return 1;                             /* CooperativeLaunch */
    case 97: return 232448;                        /* MaxSharedMemoryPerBlockOptin */
    case 99: return 1;                             /* HostRegisterSupported */
    case 102: return 1;    /* CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED */
    case 106: return 32;   /* MaxBlocksPerMultiprocessor */
    case 111: return 1024; /* ReservedSharedMemoryPerBlock */
    case 115: return 1;    /* MemoryPoolsSupported */
    case 120: return sim_capability() >= 90; /* ClusterLaunch */
    default: return 0;
  }
}
