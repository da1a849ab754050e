"""The CPU limit of control groups, as kernels and container engines lay them out, and the layout of weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import cv2
import pytest

from runner.faces.cpu import blocked_layout, cpu_quota, thread_count

V2 = "30 23 0:26 {root} /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate"
V1 = "33 28 0:29 {root} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct"
V1_CPU_ALONE = "32 31 0:29 {root} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
NOISE = """22 28 0:20 / /sys rw - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 28 0:30 / /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset
not a mountinfo line
40 28 0:31 / /sys/fs/cgroup/cpuacct ro - cgroup cgroup rw,cpuacct"""


def tree(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    """Write what a kernel shows: mountinfo, the groups of this process, and the files of groups."""
    own = root / "proc/self"
    own.mkdir(parents=True)
    (own / "mountinfo").write_text(f"{NOISE}\n{mounts}\n")
    (own / "cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_v2_limit_in_a_cgroup_namespace(tmp_path: Path) -> None:
    root = tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": "150000 100000"})
    assert cpu_quota(root) == 1.5


def test_v2_tightest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "kubepods.slice/cpu.max": "max 100000",
        "kubepods.slice/pod1/cpu.max": "100000 50000",
        "kubepods.slice/pod1/worker/cpu.max": "400000 100000",
        "kubepods.slice/pod2/cpu.max": "1000 100000",
    }
    root = tree(tmp_path, V2.format(root="/"), "0::/kubepods.slice/pod1/worker\n", files)
    assert cpu_quota(root) == 2.0


def test_v2_mount_that_begins_at_the_group_of_the_container(tmp_path: Path) -> None:
    mounts = V2.format(root="/docker/abc")
    root = tree(
        tmp_path, mounts, "0::/docker/abc/worker\n", {"cpu.max": "max 100000", "worker/cpu.max": "50000 100000"}
    )
    assert cpu_quota(root) == 0.5


@pytest.mark.parametrize("group", ["0::/../../elsewhere\n", "0::/not/below/the/mount\n", "", "garbage\n0:\n"])
def test_v2_group_outside_the_mount_falls_back_to_the_top(tmp_path: Path, group: str) -> None:
    root = tree(tmp_path, V2.format(root="/"), group, {"cpu.max": "300000 100000"})
    assert cpu_quota(root) == 3.0


def test_v1_limit_in_a_container(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    root = tree(tmp_path, V1.format(root="/docker/abc"), "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n", files)
    assert cpu_quota(root) == 0.5


def test_v1_controllers_in_another_order_with_nested_groups(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/kubepods/cpu.cfs_quota_us": "250000",
        "cpu,cpuacct/kubepods/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/kubepods/pod/cpu.cfs_quota_us": "600000",
        "cpu,cpuacct/kubepods/pod/cpu.cfs_period_us": "100000",
    }
    root = tree(tmp_path, V1.format(root="/"), "4:cpuacct,cpu:/kubepods/pod\n", files)
    assert cpu_quota(root) == 2.5


def test_hybrid_hierarchy_with_the_cpu_controller_in_v1(tmp_path: Path) -> None:
    mounts = "\n".join(
        [V1_CPU_ALONE.format(root="/"), "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"]
    )
    files = {
        "cpu/job/cpu.cfs_quota_us": "100000",
        "cpu/job/cpu.cfs_period_us": "100000",
        "unified/job/cgroup.procs": "1",
    }
    root = tree(tmp_path, mounts, "3:cpuset:/\n2:cpuacct:/other\n1:cpu:/job\n0::/job\n", files)
    assert cpu_quota(root) == 1.0


@pytest.mark.parametrize("content", ["max 100000", "", "many 100000", "0 100000", "100000", "100000 0", "1 2 3"])
def test_limits_of_max_or_malformed_ones_are_ignored(tmp_path: Path, content: str) -> None:
    assert cpu_quota(tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": content})) is None


def test_there_is_no_limit_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cores", "threads"),
    [
        (None, 4, 4),
        (0.1, 4, 1),
        (1.0, 4, 1),
        (1.1, 4, 2),  # rounded up
        (1.5, 4, 2),
        (2.0, 4, 2),
        (6.0, 4, 4),
        (64.0, 4, 4),
    ],
)
def test_thread_count_is_the_limit_rounded_up_and_at_most_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    limit = "max 100000" if quota is None else f"{round(quota * 100_000)} 100000"
    root = tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": limit})
    assert thread_count(0, root) == threads
    assert thread_count(7, root) == 7


@pytest.mark.parametrize(
    ("flags", "found", "block"),
    [
        ("fpu sse4_2 avx avx2 fma avx512f avx512vl", {11, 12, 13}, "blocks of 16"),
        ("fpu sse4_2 avx avx2 fma", {11, 12}, "blocks of 8"),
        ("fpu sse4_2 avx", set(), ""),
        ("fpu avx2 avx512f", {11, 13}, ""),  # without FMA, onnxruntime uses neither kernel
        ("fpu avx avx2 fma avx512f", {11, 12}, ""),  # an emulated CPU under the kernel of another
        ("fpu avx avx2 fma", {11, 12, 13}, ""),
        ("fpu asimd", set(), ""),  # not x86
    ],
)
def test_layout_is_known_only_where_kernel_and_cpuid_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, found: set[int], block: str
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    monkeypatch.setattr("cv2.checkHardwareSupport", found.__contains__)
    assert blocked_layout("1.2.3", tmp_path) == (f"onnxruntime 1.2.3, x86-64, {block}" if block else "")


def test_layout_is_unknown_without_cpuinfo(tmp_path: Path) -> None:
    assert blocked_layout("1.2.3", tmp_path) == ""


@pytest.mark.parametrize("name", ["AVX2", "FMA3", "AVX512F"])
def test_opencv_and_numpy_detect_the_same_features(name: str) -> None:
    """OpenCV's numbers of features still mean what `cpu.py` assumes."""
    features = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    number = {"AVX2": 11, "FMA3": 12, "AVX512F": 13}[name]
    assert cv2.checkHardwareSupport(number) == features.get(name, False)
