"""test_debian_memory.py - Debian's memory, around the hole and of huge pages, and its processor

These guests run one command in place of systemd.
"""
import pathlib
import re

import pytest

from debian import BOOT, Debian, MIB, check_host, needs, why_not

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def test_memory_around_the_hole():
    """4.5 GiB: 3 GiB below the devices, the rest above 4 GiB. What is not touched costs nothing."""
    with Debian(memory="4608M", init="/bin/bash") as m:
        m.shell.prompt(BOOT)
        total = int(m.sh("free -m | awk '/^Mem:/ { print $2 }'"))
        assert 4300 < total <= 4608
        ram = [[int(x, 16) for x in pair] for pair in
               re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM", m.sh("cat /proc/iomem"), re.M)]
        assert ram[-1] == [4 << 30, (4 << 30) + 1536 * MIB - 1]
        assert ram[-2][1] <= (3 << 30) - 1
        before = m.call("stats")["process"]["rss"]
        assert before < 2048 * MIB
        # Linux takes from the upper part first.
        m.sh("mount -t tmpfs none /mnt && head -c 96M /dev/urandom >/mnt/a && cp /mnt/a /mnt/b && "
             "cmp /mnt/a /mnt/b")
        after = m.call("stats")["process"]["rss"]
        assert before + 64 * MIB < after < 4096 * MIB
        m.send(b"exec poweroff -ff\n")
        assert m.wait() == 0, m.story()


# ---- huge pages ----

POOL = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


def pool(what):
    return int((POOL / what).read_text())


@pytest.fixture(name="pages")
def fixture_pages():
    """128 huge pages more than before in the host's pool."""
    before = pool("nr_hugepages")
    try:
        (POOL / "nr_hugepages").write_text(str(before + 128))
        if pool("free_hugepages") < 128:
            pytest.skip("this host has no 256 MiB in one piece left for huge pages")
        yield 128
    finally:
        (POOL / "nr_hugepages").write_text(str(before))


needs_pool = pytest.mark.skipif(not POOL.exists(), reason="no huge pages of 2 MiB here")


@needs_pool
def test_too_few_huge_pages():
    size = pool("free_hugepages") * 2 + 256
    with Debian("--hugepages", "2M", memory=f"{size}M") as m:
        assert m.wait() == 1
        assert f"cannot give {size // 2} huge pages" in m.errors()
        assert "vm.nr_hugepages" in m.errors()
        assert m.text() == ""


@needs_pool
@needs()
def test_huge_pages(pages):
    free = pool("free_hugepages")
    with Debian("--hugepages", "2M", memory="256M", init="/bin/bash") as m:
        m.shell.prompt(BOOT)
        assert free - pool("free_hugepages") + pool("resv_hugepages") >= pages
        m.sh("mount -t tmpfs none /mnt && head -c 32M /dev/urandom >/mnt/a && cp /mnt/a /mnt/b && "
             "cmp /mnt/a /mnt/b")
        m.send(b"exec poweroff -ff\n")
        assert m.wait() == 0, m.story()
    assert pool("free_hugepages") == free


# ---- the processor ----

LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]


@pytest.mark.parametrize("model", LEVELS)
def test_baseline(model):
    """The guest's C library finds this level and none above it."""
    check = check_host()[0]["checks"][model]
    if check["has"] != "yes":
        pytest.skip(f"this host cannot be {model}: {check['detail']}")
    with Debian("--cpu", model,
                init='/bin/sh -- -c "/lib64/ld-linux-x86-64.so.2 --help; exec poweroff -ff"') as m:
        assert m.wait(BOOT) == 0, m.story()
        found = re.findall(r"^ +(x86-64-v\d) \(supported", m.text(), re.M)
        assert sorted(found) == LEVELS[:LEVELS.index(model) + 1], m.story()


def test_host_model():
    """Each level that check-host finds; and the guest knows that it is one."""
    with Debian("--cpu", "host", init='/bin/sh -- -c "/lib64/ld-linux-x86-64.so.2 --help; lscpu; '
                                      'exec poweroff -ff"') as m:
        assert m.wait(BOOT) == 0, m.story()
        found = re.findall(r"^ +(x86-64-v\d) \(supported", m.text(), re.M)
        checks = check_host()[0]["checks"]
        assert set(found) >= {level for level in LEVELS if checks[level]["has"] == "yes"}, m.story()
        assert re.search(r"Hypervisor vendor: +KVM", m.text()), m.story()
