"""How much memory a process may use, as Linux says it in its files."""

import pytest

from sat_vg.backbone_finetuning.utils.machine_memory import Memory, machine_memory

GIB = 2**30
MEMINFO = (
    "MemTotal:       67108864 kB\nMemFree:         1048576 kB\nMemAvailable:   33554432 kB\nHugePages_Total:   0\n"
)


@pytest.fixture
def machine(tmp_path):
    """A machine of 64 GiB, 32 of them available, and a function that writes further files of its kernel."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return machine_memory(tmp_path)

    write(proc__meminfo=MEMINFO)
    return write


def test_without_control_groups(machine):
    assert machine() == Memory(64 * GIB, 32 * GIB)


def test_version_2_with_the_limit_at_a_group_around_this_one(machine):
    found = machine(
        proc__self__cgroup="0::/slice/job\n",
        sys__fs__cgroup__slice__job__memory_DOT_max="max\n",
        sys__fs__cgroup__slice__job__memory_DOT_current=f"{GIB}\n",
        sys__fs__cgroup__slice__memory_DOT_max=f"{8 * GIB}\n",
        sys__fs__cgroup__slice__memory_DOT_current=f"{5 * GIB}\n",
        sys__fs__cgroup__slice__memory_DOT_stat=f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}\nshmem 7\n",
    )
    assert found == Memory(8 * GIB, 4.5 * GIB)


def test_version_1_inside_a_container_that_sees_its_own_group_only(machine):
    found = machine(
        proc__self__cgroup="9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes=f"{4 * GIB}\n",
        sys__fs__cgroup__memory__memory_DOT_usage_in_bytes=f"{3 * GIB}\n",
    )
    assert found == Memory(4 * GIB, GIB)


def test_a_group_without_a_limit(machine):
    found = machine(
        proc__self__cgroup="4:memory:/\n",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
        sys__fs__cgroup__memory__memory_DOT_usage_in_bytes=f"{3 * GIB}\n",
    )
    assert found == Memory(64 * GIB, 32 * GIB)


def test_where_there_are_no_such_files_and_on_this_machine(tmp_path):
    for found in (machine_memory(tmp_path), machine_memory()):
        assert 2**27 < found.available <= found.total < 2**50
