"""Devices, clocks and arms that are scripts: everything they do is known in advance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass
class FakeClock:
    """Time passes only when something says so."""

    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class FakeArm:
    """An arm whose steps take programmed time; it logs what happens to it."""

    name: str
    clock: FakeClock
    cost_ns: Callable[[int], int]  # of the nth step of all arms
    log: list[str] = field(default_factory=list)
    held_now: bool = False

    def step(self) -> None:
        self.log.append(f"{self.name}{'' if self.held_now else ' outside its mode'}")
        self.clock.now_ns += self.cost_ns(len(self.log))

    @contextmanager
    def held(self) -> Iterator[None]:
        self.log.append(f"enter {self.name}")
        self.held_now = True
        yield
        self.held_now = False
        self.log.append(f"leave {self.name}")


def arms(clock: FakeClock, costs_ns: Sequence[int], log: list[str]) -> list[FakeArm]:
    return [
        FakeArm(f"arm{index}", clock, lambda _, cost=cost: cost, log)
        for index, cost in enumerate(costs_ns)
    ]


@dataclass
class FakeGpu:
    """A host that enqueues and a stream that runs, both on one simulated clock.

    A launch takes the host ``launch_ns``, be it of a kernel or an event. The queue takes
    ``capacity`` launches, then the host waits until the oldest of them is done. To wait for another
    device is not to wait for this one.
    """

    name: str = "cuda:0"
    launch_ns: int = 1000
    capacity: int = 1000
    clock: FakeClock = field(default_factory=FakeClock)
    ghz: float = 2.0
    log: list[str] = field(default_factory=list)
    ends_ns: list[int] = field(default_factory=list)  # of all launches so far
    events: int = 0  # that were made

    def launch(self, name: str, device_ns: int) -> None:
        self.log.append(name)
        self.clock.now_ns += self.launch_ns
        if len(self.ends_ns) >= self.capacity:
            self.clock.now_ns = max(self.clock.now_ns, self.ends_ns[-self.capacity])
        self.ends_ns.append(max(self.free_ns, self.clock.now_ns) + device_ns)

    @property
    def free_ns(self) -> int:
        return self.ends_ns[-1] if self.ends_ns else 0

    def synchronize(self, device: object = None) -> None:
        self.log.append("synchronize")
        if device is None or str(device) == self.name:
            self.clock.now_ns = max(self.clock.now_ns, self.free_ns)

    def sleep(self, cycles: int) -> None:
        self.launch("sleep", round(cycles / self.ghz))

    def event(self, *, enable_timing: bool) -> "FakeEvent":
        assert enable_timing
        self.events += 1
        return FakeEvent(self)

    def arm(
        self, name: str, *, kernels: int = 1, device_ns: int = 100, waits: bool = False
    ) -> "GpuArm":
        return GpuArm(
            name,
            self.clock,
            lambda _: 0,
            self.log,
            gpu=self,
            kernels=(device_ns,) * kernels,
            waits=waits,
        )


@dataclass
class FakeEvent:
    gpu: FakeGpu
    at_ns: int = -1

    def record(self) -> None:
        self.gpu.launch("record", 0)
        self.at_ns = self.gpu.free_ns

    def query(self) -> bool:
        return self.gpu.clock.now_ns >= self.at_ns

    def elapsed_time(self, end: "FakeEvent") -> float:
        if not (self.query() and end.query()):
            raise RuntimeError("CUDA error: device not ready")
        return (end.at_ns - self.at_ns) / 1e6


@dataclass
class GpuArm(FakeArm):
    """An arm whose step launches kernels."""

    gpu: FakeGpu = field(default_factory=FakeGpu)
    kernels: tuple[int, ...] = ()
    waits: bool = False

    def step(self) -> None:
        for device_ns in self.kernels:
            self.gpu.launch(self.name, device_ns)
        if self.waits:
            self.gpu.synchronize()


class FakeNvmlError(Exception):
    pass


@dataclass
class FakeNvml:
    """A pynvml with one GPU, whose sensors are read from lists; an empty list is an error."""

    uuid: str = "GPU-0000"
    pci: str = "00000000:1b:00.0"
    clocks_mhz: list[int] = field(default_factory=lambda: [1980])
    reasons: list[int] = field(default_factory=lambda: [0])
    energy_mj: Callable[[], int] | None = None
    processes: Mapping[int, int | None] | None = None  # bytes by process, where they are known
    log: list[str] = field(default_factory=list)
    starts: bool = True

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = 1

    def nvmlInit(self) -> None:  # noqa: N802 # NVML's own names
        if not self.starts:
            raise FakeNvmlError("Driver Not Loaded")

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802 # as NVML names it
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 # as NVML names it
        return self._handle(uuid, self.uuid)

    def nvmlDeviceGetHandleByPciBusId(self, pci: str) -> str:  # noqa: N802 # as NVML names it
        return self._handle(pci, self.pci)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802 # as NVML names it
        assert (handle, kind) == ("handle", 1)
        self.log.append("nvml")
        return self._next(self.clocks_mhz)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802 # as NVML names it
        return self._next(self.reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802 # as NVML names it
        if self.energy_mj is None:
            raise FakeNvmlError("Not Supported")
        return self.energy_mj()

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[object]:  # noqa: N802 # as NVML names it
        assert handle == "handle"
        if self.processes is None:
            raise FakeNvmlError("Not Supported")
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()
        ]

    def _handle(self, asked: str, known: str) -> str:
        if asked != known:
            raise FakeNvmlError("Not Found")
        return "handle"

    def _next(self, values: list[int]) -> int:
        if not values:
            raise FakeNvmlError("Not Supported")
        return values.pop(0) if len(values) > 1 else values[0]
