"""C++ beside a module, compiled once per machine by the compiler that is there."""

import ctypes
import hashlib
import os
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
ARCHITECTURES = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
"""By what torch finds the processor capable of; for others the compiler's default."""


@cache
def load_compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a C++ file; None, with a warning, where it cannot be compiled.

    `CXX` names the compiler (c++); libraries are kept in ~/.cache/lra, or below XDG_CACHE_HOME.
    """
    compiler = os.environ.get("CXX", "c++")
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    command = [compiler, *FLAGS, *([architecture] if architecture else []), str(source)]
    # torch's own OpenMP, if it brings one: a second pool of threads would wait for the same cores
    command += map(str, sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")))
    key = hashlib.sha256("\0".join([*command, source.read_text()]).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lra")
    library = folder / f"{source.stem}-{key[:16]}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as work:
                result = Path(work, library.name)
                subprocess.run([*command, "-o", result], check=True, capture_output=True, text=True)
                result.rename(library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{source.name} cannot be compiled, so a slower form in PyTorch takes its place; "
            f"install a C++ compiler, or name one in CXX: {reason.strip()}",
            stacklevel=2,
        )
        return None
