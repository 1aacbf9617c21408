"""conftest.py - one node for all tests of a file, pods and disks for each, and a look for leftovers"""
import fcntl
import os
import subprocess

import pytest

import node as nodes


def pytest_configure(config):
    config.addinivalue_line("markers", "debian: boots Debian guests; needs a KVM that runs Linux")


@pytest.fixture(scope="module")
def node():
    reason = nodes.why_not()
    if reason:
        pytest.skip(reason)
    n = nodes.Node()
    yield n
    n.close()


@pytest.fixture
def pods(node, device):  # disks outlive pods
    """make(...) a pod that runs. All are removed at the end, and nothing of them may be left."""
    made = []

    def make(*args, run=True, **kwargs):
        pod = nodes.Pod(node, *args, **kwargs)
        made.append(pod)
        return pod.run() if run else pod

    yield make
    for pod in made:
        pod.remove()
    node.reset()
    node.check_clean()


@pytest.fixture
def device(tmp_path):
    """make(size) a loop device over a file; its path. Nobody may have it open or locked at the end."""
    made = []

    def make(size=4 << 20, content=b""):
        path = tmp_path / f"disk{len(made)}"
        with open(path, "wb") as f:
            f.write(content)
            f.truncate(size)
        made.append(subprocess.run(["losetup", "-f", "--show", str(path)], check=True,
                                   capture_output=True, text=True).stdout.strip())
        return made[-1]

    yield make
    for loop in made:
        fd = os.open(loop, os.O_RDWR | os.O_EXCL)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
        subprocess.run(["losetup", "-d", loop], check=False)
