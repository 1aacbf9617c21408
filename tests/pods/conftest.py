"""conftest.py - one node for all tests of a file, pods and disks for each, and a look for leftovers"""
import subprocess

import pytest

import node as nodes


@pytest.fixture(scope="module")
def node():
    reason = nodes.why_not()
    if reason:
        pytest.skip(reason)
    n = nodes.Node()
    yield n
    n.close()


@pytest.fixture
def pods(node):
    """make(...) a pod that is removed at the end."""
    made = []

    def make(*args, run=True, **kwargs):
        pod = nodes.Pod(node, *args, **kwargs)
        made.append(pod)
        return pod.run() if run else pod

    yield make
    for pod in made:
        pod.remove()
    node.configure(kernel=str(nodes.GUESTS / "hello.elf"), cmdline="")


@pytest.fixture
def device(tmp_path):
    """make(size) a loop device over a file; its path."""
    made = []

    def make(size=4 << 20, name=None):
        path = tmp_path / (name or f"disk{len(made)}")
        with open(path, "wb") as f:
            f.truncate(size)
        made.append(subprocess.run(["losetup", "-f", "--show", str(path)], check=True,
                                   capture_output=True, text=True).stdout.strip())
        return made[-1]

    yield make
    for loop in made:
        subprocess.run(["losetup", "-d", loop], check=False)
