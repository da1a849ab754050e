"""The settings of a list in a helm values file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from runner.errors import UsageError
from runner.simulation.keda import STRATEGIES, Setting

# Chart value → field, and whether it must be a whole number of at least so much.
_FIELDS = {
    "jobsPerPod": ("jobs_per_pod", 1),
    "pollingInterval": ("polling_interval", 1),
    "maxReplicas": ("max_replicas", 1),
    "maxJobs": ("max_jobs", 1),
    "minReplicas": ("min_replicas", 0),
    "idleSeconds": ("idle_seconds", 0),
    "maxSeconds": ("max_seconds", 1),
    "activationListLength": ("activation", 0),
}
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?)(m?)")


def with_values(setting: Setting, path: Path, queue: str) -> Setting:
    """Return `setting` with what the file says of `queues.QUEUE`. Raises `UsageError`, naming file and value."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read (--values): {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        raise UsageError(f"{path} is not a YAML file in UTF-8 (--values)") from None
    values = _mapping(_mapping(document, path, "the file").get("queues"), path, "queues").get(queue)
    found = _mapping(values, path, f"queues.{queue}")
    changed: dict[str, Any] = {}
    for name, (field, least) in _FIELDS.items():
        if found.get(name) is not None:
            changed[field] = _whole(found[name], least, path, f"queues.{queue}.{name}")
    if found.get("scalingStrategy") is not None:
        changed["strategy"] = _strategy(found["scalingStrategy"], path, f"queues.{queue}.scalingStrategy")
    resources = _mapping(found.get("resources"), path, f"queues.{queue}.resources")
    for kind, field in (("requests", "cpu_request"), ("limits", "cpu_limit")):
        place = f"queues.{queue}.resources.{kind}"
        quantity = _mapping(resources.get(kind), path, place).get("cpu")
        if quantity is not None:
            changed[field] = _cpus(quantity, path, f"{place}.cpu")
    return replace(setting, **changed)


def _mapping(value: Any, path: Path, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {place} must be a mapping (--values)")
    return value


def _whole(value: Any, least: int, path: Path, place: str) -> int:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    if not isfinite(number) or number != int(number) or number < least:
        raise UsageError(f"{path}: {place} must be a whole number of {least} or more (--values)")
    return int(number)


def _strategy(value: Any, path: Path, place: str) -> str:
    if value not in STRATEGIES:
        raise UsageError(f"{path}: {place} must be one of {', '.join(STRATEGIES)} (--values)")
    return str(value)


def _cpus(value: Any, path: Path, place: str) -> float:
    quantity = _QUANTITY.fullmatch(str(value))
    cpus = float(quantity[1]) / (1000 if quantity[2] else 1) if quantity else 0.0
    if cpus <= 0:
        raise UsageError(f'{path}: {place} must be a number of CPUs such as "2" or 500m (--values)')
    return cpus
