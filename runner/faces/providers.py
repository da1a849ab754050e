"""Execution providers of onnxruntime: selects those that are both wanted and available."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runner.errors import SettingsError
from runner.output import repeated

CPU = "CPUExecutionProvider"
# Name in RUNNER_PROVIDERS → onnxruntime's name and crops per call, in order of preference.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", 32),
    "cpu": (CPU, 2),
}
# Of onnxruntime's CUDA provider. Photos have many shapes, and a run is short: trying every algorithm for each new shape
# (its default) would take longer than the photo. Memory grows by the requested amount, not by powers of two, because a
# device may be shared. TF32 would round embeddings to 10 bits, and answers must be those of the CPU.
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "0",
}


def provider_options(chain: Sequence[str]) -> list[dict[str, str]]:
    """Return the options of each provider in `chain` (onnxruntime's names)."""
    return [CUDA_OPTIONS if name == "CUDAExecutionProvider" else {} for name in chain]


class ProviderError(Exception):
    """An execution provider could not run the models; the message is what onnxruntime reported."""


class ProviderChoice(NamedTuple):
    """A provider that may run the models.

    `name` is its name in RUNNER_PROVIDERS, `chain` are onnxruntime's names of it and of those that run what it
    cannot, `batch_size` is the number of crops per call, and `reason` says why no preferred provider was chosen
    (empty if this is the preferred one).
    """

    name: str
    chain: tuple[str, ...]
    batch_size: int
    reason: str


def choose_providers(wanted: Sequence[str], available: Sequence[str], batch_size: int = 0) -> list[ProviderChoice]:
    """Return the providers of `wanted` that are among `available` (onnxruntime's names), in the order of `wanted`.

    "auto", or nothing, wants all of them. A later choice is the fallback for one that fails to start. `batch_size`
    replaces the providers' own if it is positive. Raises `SettingsError` for an unknown name, and when none is
    available.
    """
    names = [name.lower() for name in wanted]
    if names in ([], ["auto"]):
        names = list(PROVIDERS)
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        raise SettingsError(
            f"RUNNER_PROVIDERS names {repeated(', '.join(unknown))}; known are auto, {', '.join(PROVIDERS)}"
        )
    installed = [full_name for full_name, _ in PROVIDERS.values() if full_name in available]
    choices: list[ProviderChoice] = []
    missing: list[str] = []
    for name in names:
        full_name, crops = PROVIDERS[name]
        if full_name not in available:
            missing.append(name)
            continue
        chain = tuple(installed[installed.index(full_name) :])
        reason = f"this onnxruntime does not have {' or '.join(missing)}" if missing else ""
        choices.append(ProviderChoice(name, chain, batch_size or crops, reason))
    if not choices:
        raise SettingsError(
            f"RUNNER_PROVIDERS wants {', '.join(names)}, but this onnxruntime has only {', '.join(available)}: "
            "use the gpu flavour of the image, or add cpu"
        )
    return choices
