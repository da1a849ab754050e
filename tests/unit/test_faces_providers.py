"""The choice of execution providers from RUNNER_PROVIDERS and from what onnxruntime has."""

from __future__ import annotations

import pytest

from runner.errors import SettingsError
from runner.faces.providers import choose_providers

ALL = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")  # as the GPU build says
CPU_ONLY = ("AzureExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("wanted", "available", "names"),
    [
        (("auto",), ALL, ["cuda", "cpu"]),
        ((), ALL, ["cuda", "cpu"]),
        (("auto",), CPU_ONLY, ["cpu"]),
        (("auto",), ALL[1:], ["cuda", "cpu"]),
        (("cuda",), ALL, ["cuda"]),
        (("CPU", "Cuda"), ALL, ["cpu", "cuda"]),
        (("cuda", "cpu"), CPU_ONLY, ["cpu"]),
    ],
)
def test_available_providers_are_chosen_in_the_order_of_the_setting(
    wanted: tuple[str, ...], available: tuple[str, ...], names: list[str]
) -> None:
    assert [choice.name for choice in choose_providers(wanted, available)] == names


def test_each_provider_is_backed_by_those_after_it() -> None:
    chains = {choice.name: choice.chain for choice in choose_providers(("auto",), ALL)}
    assert chains == {"cuda": ALL[1:], "cpu": ALL[2:]}
    assert choose_providers(("cuda",), ALL)[0].chain == ALL[1:]


def test_batch_size_is_the_setting_or_the_default_of_the_provider() -> None:
    assert {choice.name: choice.batch_size for choice in choose_providers(("auto",), ALL)} == {
        "cuda": 32,
        "cpu": 2,
    }
    assert {choice.batch_size for choice in choose_providers(("auto",), ALL, 5)} == {5}


def test_reason_names_the_providers_that_are_missing() -> None:
    assert choose_providers(("auto",), CPU_ONLY)[0].reason == "this onnxruntime does not have cuda"
    assert choose_providers(("cpu",), CPU_ONLY)[0].reason == ""


def test_an_unknown_provider_is_rejected() -> None:
    with pytest.raises(SettingsError, match="RUNNER_PROVIDERS names tpu; known are auto, cuda, cpu"):
        choose_providers(("cpu", "TPU"), ALL)


def test_wanted_providers_that_are_all_missing_are_rejected() -> None:
    with pytest.raises(SettingsError, match="wants cuda, but this onnxruntime has only AzureExecutionProvider, CPU"):
        choose_providers(("cuda",), CPU_ONLY)
