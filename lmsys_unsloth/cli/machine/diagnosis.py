"""What this machine has, what is fast on it, and what does not fit together."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from lmsys_unsloth.cli.check import Check
from lmsys_unsloth.cli.machine.speed import product_rate
from lmsys_unsloth.cli.start.inputs import has_gpu
from lmsys_unsloth.cli.start.own_conf import describe, own_conf
from lmsys_unsloth.config.environment import describe_environment, installed_versions
from lmsys_unsloth.config.resources import CONF, pinned_versions
from lmsys_unsloth.core import cache
from lmsys_unsloth.model import attention

PYTHON = ((3, 11), (3, 13))
"""Oldest and newest version of Python that the project supports."""

FREE_GB = 20.0
"""Free space below which a warning is given, in 10⁹ bytes: caches, checkpoints and an 8B model need more."""

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "bf16")
"""Flags of /proc/cpuinfo that decide how fast matrices are multiplied."""


def diagnose() -> list[Check]:
    """Check the machine and the installation, in a few seconds and without a network."""
    return [
        *_machine(),
        *(_gpus() if torch.cuda.is_available() else [_no_gpu(), *_processor_speed()]),
        *_packages(),
        *_storage(),
        _configuration(),
    ]


def _machine() -> Iterator[Check]:
    environment = describe_environment("")
    version = sys.version_info[:2]
    python = f"{platform.python_version()} ({platform.machine()})"
    if PYTHON[0] <= version <= PYTHON[1]:
        yield Check("Python", python)
    else:
        yield Check("Python", python, "error", "use Python 3.11, 3.12 or 3.13")
    yield Check("system", environment["platform"])
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("processor", f"{environment['processor'] or 'unknown'}, {usable} cores usable")
    memory = psutil.virtual_memory()
    yield Check("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free")


def _no_gpu() -> Check:
    if not has_gpu():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        return Check("GPU", "hidden by CUDA_VISIBLE_DEVICES" if hidden else "none")
    build = f"torch {torch.__version__} (" + (
        f"CUDA {cuda})" if (cuda := torch.version.cuda) else "CPU only)"
    )
    return Check(
        "GPU", f"there is one, but {build} can't use it", "error",
        "install packages for GPUs (`make env PACKAGES=cuda`, or requirements/cuda.txt) or a newer driver",
    )  # fmt: skip


def _gpus() -> Iterator[Check]:
    """One line for each GPU: what it can do, and what will therefore be slow."""
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        found = torch.cuda.get_device_properties(device)
        missing = [] if torch.cuda.is_bf16_supported() else ["bfloat16 (float16 is used; not for Gemma)"]
        if not attention.has_flash_attention(device):
            missing.append("flash attention (rows are computed one at a time)")
        value = (
            f"{found.name}, {found.total_memory / 1e9:.0f} GB, compute capability {found.major}.{found.minor}"
        )
        if missing:
            remedy = "all models run, but slower; a GPU from Ampere on (A100, L4, RTX 30) has both"
            yield Check(f"GPU {index}", f"{value}; lacks {', '.join(missing)}", "warning", remedy)
        else:
            yield Check(f"GPU {index}", f"{value}; bfloat16, flash attention")
    yield _rate("products on the GPU", torch.bfloat16, size=(4096, 14336))


def _processor_speed() -> Iterator[Check]:
    """Features and measured speed of a CPU that has to train."""
    flags = processor_flags()
    features = ", ".join(name for name in _FEATURES if name in flags) or "unknown"
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & flags
    if fast or not flags:
        yield Check("instructions", features)
    else:
        yield Check(
            "instructions", features, "warning",
            "no bfloat16 products in hardware: training on this CPU is several times slower than "
            "docs/performance.md says; model.dtype=float32 may be faster (the rates below decide)",
        )  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32):
        yield _rate(f"products in {str(dtype).removeprefix('torch.')}", dtype, size=(576, 1536))
    yield Check("what runs here", "SmolLM2 and other models below a billion weights; larger ones need a GPU")


def processor_flags() -> set[str]:
    """The processor's features as Linux lists them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(
        next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )


def _rate(name: str, dtype: torch.dtype, size: tuple[int, int]) -> Check:
    rate = product_rate(*size, dtype)
    text = f"{rate / 1e12:,.0f} TFLOP/s" if rate > 3e12 else f"{rate / 1e9:,.0f} GFLOP/s"
    return Check(name, f"{text}, measured now")


def _packages() -> Iterator[Check]:
    """Missing and other versions than the pinned ones, with the command that installs them."""
    device = "cuda.txt" if torch.cuda.is_available() else "cpu.txt"
    own = pinned_versions("no-deps.txt")
    pins = pinned_versions("base.txt", device) | own
    installed = installed_versions(list(pins))
    missing = [f"{name}=={version}" for name, version in pins.items() if name not in installed]
    needed = [pin for pin in missing if not pin.startswith("triton==")]
    apart = [pin for pin in needed if pin.partition("==")[0] in own]
    if apart:
        command = f"pip install --no-deps {' '.join(apart)}"
        yield Check("packages", f"{', '.join(apart)} missing", "error", f"install them apart: `{command}`")
    if others := [pin for pin in needed if pin not in apart]:
        remedy = f"`pip install {' '.join(others)}`"
        yield Check("packages", f"{', '.join(others)} missing", "error", remedy)
    different = [
        f"{name} {version} (pinned: {pins[name]})"
        for name, version in installed.items()
        if version.partition("+")[0] != pins[name]
    ]
    if different:
        remedy = "these versions were not tested together; install the pinned ones"
        yield Check("versions", ", ".join(different), "warning", remedy)
    elif not needed:
        yield Check("packages", f"{len(installed)} as pinned, torch {torch.__version__}")
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        remedy = "FlexAttention and unsloth's kernels need it; it comes with CUDA builds of torch for Linux"
        yield Check("triton", "missing", "error", remedy)


def _storage() -> Iterator[Check]:
    folder = cache.cache_dir()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    for name, place in {"cache folder": existing, "working directory": Path.cwd()}.items():
        free = shutil.disk_usage(place).free / 1e9
        value = f"{folder if name == 'cache folder' else place}, {free:,.0f} GB free"
        if not os.access(place, os.W_OK):
            remedy = "set LMSYS_UNSLOTH_CACHE to a folder that may be written to, or start elsewhere"
            yield Check(name, f"{value}, not writable", "error", remedy)
        elif free < FREE_GB:
            yield Check(name, value, "warning", f"less than {FREE_GB:.0f} GB: large models may not fit")
        else:
            yield Check(name, value)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield Check(
        "Hugging Face hub", "not used (HF_HUB_OFFLINE)" if offline else "used for models and hf: data"
    )


def _configuration() -> Check:
    own = own_conf()
    return Check("configuration", str(CONF) if own is None else f"{CONF}; {describe(own)}")
