"""Build the simulated libraries for one CUDA build of torch.

``python generate.py TORCH_LIB OUT`` reads what the libraries in TORCH_LIB leave undefined, compiles
the functions written in ``src/``, writes a stub by rule for each of the others, and links every
library under NVIDIA's name and symbol version into OUT. Run it with the Python of this torch.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Final

SRC: Final = Path(__file__).parent / "src"
MODEL: Final = "libsimulated_cuda.so"  # the cards themselves, which every library shares
CFLAGS: Final = ("-std=gnu11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, slots=True)
class Library:
    """One of NVIDIA's libraries: which symbols are its own, and how a stub of it refuses."""

    soname: str
    symbols: str  # a pattern that its functions' names match
    refusal: int  # the error that a function returns which is not simulated
    folder: str = ""  # in src/, of the functions that are written


# A symbol belongs to the first library whose pattern matches it.
LIBRARIES: Final = (
    Library("libcudart.so.13", r"(__)?cuda[A-Z]", 801, "cudart"),  # cudaErrorNotSupported
    Library("libcublasLt.so.13", r"cublasLt", 15, "cublaslt"),  # CUBLAS_STATUS_NOT_SUPPORTED
    Library("libcublas.so.13", r"cublas", 15, "cublas"),
    Library("libcudnn.so.9", r"cudnn", 3000, "cudnn"),  # CUDNN_STATUS_NOT_SUPPORTED
    Library("libcupti.so.13", r"cupti", 35, "cupti"),  # CUPTI_ERROR_INSUFFICIENT_PRIVILEGES
    Library("libnvidia-ml.so.1", r"nvml", 3, "nvml"),  # NVML_ERROR_NOT_SUPPORTED
    Library("libcusparseLt.so.0", r"cusparseLt", 10),  # CUSPARSE_STATUS_NOT_SUPPORTED
    Library("libcusparse.so.12", r"cusparse", 10),
    Library("libcusolver.so.12", r"cusolver", 9),  # CUSOLVER_STATUS_NOT_SUPPORTED
    Library("libcufft.so.12", r"cufft", 16),  # CUFFT_NOT_SUPPORTED
    Library("libcurand.so.10", r"curand", 201),  # CURAND_STATUS_LAUNCH_FAILURE
    Library("libcufile.so.0", r"cuFile", 5001),  # CU_FILE_DRIVER_NOT_INITIALIZED
    Library("libnccl.so.2", r"nccl", 3),  # ncclInternalError
    Library("libnvrtc.so.13", r"nvrtc", 11),  # NVRTC_ERROR_INTERNAL_ERROR
    Library("libnvshmem_host.so.3", r"nvshmem", 1),
    Library("libcuda.so.1", r"cu[A-Z]", 801, "cuda"),  # CUDA_ERROR_NOT_SUPPORTED
)

# A function's name -> the body of its stub; a name that matches none of these refuses.
RULES: Final[Mapping[str, str]] = {
    r"(GetErrorString|GetLastError)$": 'return (long)"not simulated";',
    r"(nccl|nvrtc)(Get)?Version$": "*(int *)first = 0; return 0;",
    r"cublas(Set|Get)(Matrix|Vector)Async$": "{refuse}",
    r"cublas(?!Lt)": 'return sim_cublas_work(first, "{name}");',
    r"cudnnCreate\w+Descriptor$": "return sim_cudnn_make(first);",
    r"cudnnDestroy\w+Descriptor$": "return sim_cudnn_free(first);",
    r"cudnn(Set|Restore)\w+$": "return 0;",
    r"cudnnBatchNormalization(Forward|Backward)\w+$": 'return sim_cudnn_work(first, "{name}");',
}

DECLARATIONS: Final = """/* Written by generate.py. */
int sim_refuse(const char *, int), sim_cublas_work(void *, const char *);
int sim_cudnn_make(void *), sim_cudnn_free(void *), sim_cudnn_work(void *, const char *);
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What torch asks of one library: its functions, and the version that they carry."""

    names: frozenset[str]
    version: str


def run(*command: object) -> str:
    """Return what the command prints; leave with what it complains of."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return done.stdout


def versions(requirements: Iterable[str]) -> list[str]:
    """Return the compiler's options for the CUDA and the cuDNN that this torch was built for."""
    wanted = "\n".join(requirements)
    cuda = re.search(r"^cuda-toolkit\S*==(\d+)\.(\d+)", wanted, re.MULTILINE)
    cudnn = re.search(r"^nvidia-cudnn\S*==(\d+)\.(\d+)\.(\d+)", wanted, re.MULTILINE)
    if not (cuda and cudnn):
        sys.exit("this torch does not require NVIDIA's libraries: is it the CUDA build?")
    parts = zip(("MAJOR", "MINOR", "PATCH"), cudnn.groups(), strict=True)
    return [
        f"-DCUDA_VERSION={int(cuda[1]) * 1000 + int(cuda[2]) * 10}",
        *(f"-DCUDNN_{part}={number}" for part, number in parts),
    ]


def library_of(symbol: str) -> Library | None:
    """Return the library that a symbol belongs to."""
    return next((lib for lib in LIBRARIES if re.match(lib.symbols, symbol)), None)


def undefined(path: Path) -> Iterable[tuple[str, str]]:
    """Yield the names that one library of torch leaves undefined, with their versions."""
    for line in run("nm", "-D", "--undefined-only", "--with-symbol-versions", path).splitlines():
        name, _, version = line.split()[-1].partition("@")
        yield name, version.lstrip("@")


def by_name(path: Path) -> set[str]:
    """Return the functions of the driver that torch looks up by their names as it runs."""
    strings = path.read_bytes().split(b"\0")
    return {text.decode() for text in strings if re.fullmatch(rb"cu[A-Z][A-Za-z0-9_]{5,60}", text)}


def wanted_of(torch_lib: Path) -> dict[str, Wanted]:
    """Return what the libraries of torch want, by the library that should have it."""
    names: dict[str, set[str]] = {lib.soname: set() for lib in LIBRARIES}
    version = dict.fromkeys(names, "")
    for path in sorted(torch_lib.glob("lib*.so")):
        for name, its_version in undefined(path):
            if lib := library_of(name):
                names[lib.soname].add(name)
                version[lib.soname] = its_version or version[lib.soname]
    names["libcuda.so.1"] |= by_name(torch_lib / "libc10_cuda.so")
    return {soname: Wanted(frozenset(names[soname]), version[soname]) for soname in names}


def check_needed(torch_lib: Path) -> None:
    """Leave when torch is linked with a library that has no rule here."""
    pattern = r"\(NEEDED\).*\[(lib(?:cu|nv|nccl)[^]]*)\]"
    needed = {
        soname
        for path in torch_lib.glob("lib*.so")
        for soname in re.findall(pattern, run("readelf", "-d", path))
    }
    if unknown := needed - {lib.soname for lib in LIBRARIES}:
        sys.exit(f"torch needs {', '.join(sorted(unknown))}: is this its build for CUDA 13?")


def stub(name: str, lib: Library) -> str:
    """Return the C of a function that is not written in ``src/``."""
    refuse = f'return sim_refuse("{name}", {lib.refusal});'
    body = next((body for pattern, body in RULES.items() if re.search(pattern, name)), "{refuse}")
    body = body.replace("{refuse}", refuse).replace("{name}", name)
    return f"long {name}(void *first) {{ (void)first; {body} }}"


def compiled(folder: str, options: list[str], out: Path) -> list[Path]:
    """Compile the files of a folder of ``src/``; return the objects."""
    objects = []
    for source in sorted((SRC / folder).glob("*.c")):
        made = out / f"{folder}_{source.stem}.o"
        run("gcc", *CFLAGS, *options, "-c", source, "-o", made)
        objects.append(made)
    return objects


def defined(objects: list[Path]) -> set[str]:
    """Return the functions that objects define."""
    if not objects:
        return set()
    lines = run("nm", "--defined-only", "--extern-only", *objects).splitlines()
    return {line.split()[-1] for line in lines if len(line.split()) == 3}


def link(
    soname: str, parts: Iterable[Path], libraries: Iterable[Path], out: Path, *more: str
) -> None:
    """Link one library under its name; it finds the others beside it."""
    run(
        "gcc", "-shared", "-o", out / soname, f"-Wl,-soname,{soname}", "-Wl,-rpath,$ORIGIN",
        *more, *parts, "-Wl,--no-as-needed", *libraries, "-lpthread", "-ldl",
    )  # fmt: skip


def build(lib: Library, wanted: Wanted, options: list[str], out: Path) -> str:
    """Compile and link one library; return a line about it."""
    objects = compiled(lib.folder, options, out) if lib.folder else []
    written = defined(objects)
    generated = sorted(wanted.names - written)
    stubs = out / f"{lib.soname}.stubs.c"
    stubs.write_text(DECLARATIONS + "".join(f"{stub(name, lib)}\n" for name in generated))
    more = []
    if wanted.version:
        script = out / f"{lib.soname}.map"
        script.write_text(f"{wanted.version} {{ global: *; }};\n")
        more.append(f"-Wl,--version-script={script}")
    # The runtime brings the driver and NVML along: both are found by name once torch is here.
    beside = [MODEL]
    if lib.folder == "cudart":
        beside += ["libcuda.so.1", "libnvidia-ml.so.1"]
    stub_object = out / f"{lib.soname}.stubs.o"
    run("gcc", *CFLAGS, "-c", stubs, "-o", stub_object)
    link(lib.soname, [*objects, stub_object], [out / name for name in beside], out, *more)
    return f"{lib.soname}: {len(written & wanted.names)} written, {len(generated)} generated"


def main() -> None:
    """Build all libraries beside OUT, then put each in its place at once."""
    torch_lib, out = Path(sys.argv[1]), Path(sys.argv[2])
    check_needed(torch_lib)
    options = versions(requires("torch") or [])
    wanted = wanted_of(torch_lib)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder, ThreadPoolExecutor() as pool:
        made = Path(folder)
        link(MODEL, compiled("model", options, made), [], made)
        runtime, *others = LIBRARIES  # the runtime is linked with some of the others
        lines = list(pool.map(lambda lib: build(lib, wanted[lib.soname], options, made), others))
        lines.append(build(runtime, wanted[runtime.soname], options, made))
        for name in (MODEL, *(lib.soname for lib in LIBRARIES)):
            # Not overwritten: a process may have the old one mapped.
            (made / name).replace(out / name)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
