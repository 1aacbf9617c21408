"""test_deploy.py - the node installer and what it installs"""
import json
import os
import pathlib
import re
import subprocess

import pytest

from cri import Refused
from node import BUILD, SHIM, TOP, Node, Pod, containerd_version, why_not

DEPLOY = TOP / "k8s-shim/deploy"
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def install(root, *args, check=True):
    run = subprocess.run([DEPLOY / "install-node", "--root", root, *args], check=False,
                         capture_output=True, text=True)
    assert not check or run.returncode == 0, run.stderr
    return run.stdout if check else run.stderr


def dump(config):
    """What containerd makes of it; from 2.0 on its strings have the other quotes."""
    return subprocess.run(["containerd", "--config", config, "config", "dump"], check=True,
                          capture_output=True, text=True).stdout.replace("'", '"')


def runtimes(text):
    return re.findall(r"\.runtimes\.([^].]+)\]$", text, re.M)


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    """write(text) the node's configuration of containerd; its path."""
    def write(text):
        path = tmp_path / "etc/containerd/config.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o640)
        return path

    return write


# As Debian's package has it.
DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""


def test_a_node_of_its_own(tmp_path):
    restarts = tmp_path / "restarts"
    args = ("--restart", f"echo once >>{restarts}")
    install(tmp_path, *args)
    assert (tmp_path / "usr/local/bin" / SHIM).read_bytes() == (TOP / "build/release" /
                                                                SHIM).read_bytes()
    config = tmp_path / "etc/containerd/config.toml"
    first = config.read_text()
    text = dump(config)
    assert 'runtime_type = "io.containerd.coracle.v2"' in text
    assert 'pod_annotations = ["vm.coracle.dev/*"]' in text
    assert 'ConfigPath = "/etc/coracle/coracle.json"' in text
    assert install(tmp_path, *args) == ""  # again: nothing to restart for
    assert config.read_text() == first
    assert restarts.read_text() == "once\n"
    json.loads((tmp_path / "etc/coracle/coracle.json").read_text())


@pytest.mark.parametrize("text", [DEBIAN, DEBIAN.rstrip("\n"), 'version=2\n[plugins."io.containerd'
                                  '.grpc.v1.cri".containerd]\n  snapshotter = "native"\n', None])
def test_there_and_back(tmp_path, config, text):
    """What a node has already stays as it is, and is as it was at the end."""
    text = text or subprocess.run(["containerd", "config", "default"], check=True,
                                  capture_output=True, text=True).stdout
    path = config(text)
    own = tmp_path / "etc/coracle/coracle.json"
    own.parent.mkdir()
    own.write_text('{"cpus-max": 2}')
    before = dump(path)
    assert "restart containerd" in install(tmp_path)
    after = dump(path)
    assert "io.containerd.coracle.v2" in after
    assert set(runtimes(before)) | {"coracle"} == set(runtimes(after)) and "runc" in runtimes(after)
    # containerd 2 takes this out of a version 2 only where there is a runtime, too.
    assert 'snapshotter = "native"' in after or 'snapshotter = "native"' not in before
    assert path.stat().st_mode & 0o777 == 0o640
    pod = tmp_path / "run/coracle/pods/some"
    pod.mkdir(parents=True)
    assert "1 machines of pods run" in install(tmp_path, "--uninstall", check=False)
    pod.rmdir()
    assert "restart containerd" in install(tmp_path, "--uninstall")
    assert path.read_text().rstrip("\n") == text.rstrip("\n")
    assert not list((tmp_path / "usr/local/bin").iterdir())
    assert own.read_text() == '{"cpus-max": 2}'
    assert install(tmp_path, "--uninstall") == ""


@pytest.mark.parametrize("version", [3, 4])
def test_another_place_and_another_version(tmp_path, config, version):
    """containerd 2 names its part for Kubernetes differently. An older one reads none of it."""
    path = config(f"version = {version}\n")
    readable = subprocess.run(["containerd", "--config", path, "config", "dump"], check=False,
                              capture_output=True).returncode == 0
    said = install(tmp_path, "--config", "/etc/containerd/config.toml", check=readable)
    text = path.read_text()
    if not readable:
        assert "could not read it" in said and text == f"version = {version}\n"
        return
    assert "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.coracle]" in text
    assert "grpc.v1.cri" not in text
    if containerd_version() >= (2,):
        assert {"coracle", "runc"} <= set(runtimes(dump(path)))


@pytest.mark.parametrize("text,sentence", [
    ('disabled_plugins = ["io.containerd.grpc.v1.cri"]\nversion = 2\n', "take it out of there"),
    ("[grpc]\n", "it is of version 1, not 2, 3 or 4"),
    ("version = 2\n[plugins\n", "could not read it"),
    ('version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  containerd = "x"\n', "could not read it"),
])
def test_nodes_that_do_not_do(tmp_path, config, text, sentence):
    path = config(text)
    assert sentence in install(tmp_path, "--restart", f"touch {tmp_path}/restarted", check=False)
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["config.toml"]
    assert not (tmp_path / "restarted").exists()


def test_programs_that_do_not_run(tmp_path):
    """Built for another kind of processor."""
    old, programs = tmp_path / "usr/local/bin" / SHIM, tmp_path / "programs"
    for path in (old, tmp_path / "bin/sh", programs / "coracle", programs / SHIM):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    for name in ("coracle", SHIM):
        header = bytearray((TOP / "build/release" / name).read_bytes()[:4096])
        header[18:20] = b"\xf3\x00"  # RISC-V
        (programs / name).write_bytes(header)
        (programs / name).chmod(0o755)
    assert "do not run on this node" in install(tmp_path, "--from", programs, check=False)
    assert old.read_text() == "old" and [p.name for p in old.parent.iterdir()] == [SHIM]


def test_pods_run_on_it(tmp_path):
    """A real containerd, running, with pods of it, is told by the installer and restarted."""
    node = Node(cmdline="exit=halt")
    try:
        path = node.dir / "config.toml"
        lines = path.read_text().splitlines(keepends=True)
        cut = next(i for i, line in enumerate(lines) if ".runtimes.coracle]" in line)
        path.write_text("".join(lines[:cut]).replace('default_runtime_name = "coracle"\n', ""))
        node.kill()
        node.start()
        with pytest.raises(Refused, match='no runtime for "coracle"'):
            Pod(node).run()
        said = install(tmp_path, "--config", "/" + os.path.relpath(path, tmp_path), "--restart", "true")
        assert said == "install-node: true\n"
        assert runtimes(dump(path)) == ["coracle", "runc"]
        path.write_text(path.read_text().replace("/etc/coracle/coracle.json",
                                                 str(node.dir / "coracle.json")))
        node.kill()
        node.start()
        (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
        pod = Pod(node).run().start(mounts=[("/disk", str(tmp_path))])
        pod.line("done")
        pod.remove()
        node.check_clean()
    finally:
        node.close()


def test_manual_page_names_every_key():
    source = (TOP / "k8s-shim/node_config.c").read_text()
    keys = re.findall(r'^\t\{ "([a-z-]+)", [A-Z]+, AT', source, re.M)
    page = (TOP / "docs/coracle.json.5").read_text()
    assert len(keys) == 14
    assert re.findall(r"^\.It Qq ([a-z-]+)$", page, re.M)[:len(keys) + 4] == [
        "vmm", "kernel", "initrd", "cmdline", "console", "transport", "log-level", "vhost", "memory",
        "memory-max", "cpus", "cpus-max", "disk-direct", "annotations", "mode", "cloud-init-from",
        "kernel-args", "console"]
    assert set(keys) <= set(re.findall(r"^\.It Qq ([a-z-]+)$", page, re.M))


def test_shim_prints_its_version():
    out = subprocess.run([BUILD / SHIM, "-v"], check=True, capture_output=True, text=True).stdout
    assert out.startswith(SHIM)


def test_what_the_runtime_can_do():
    """As containerd asks it, and as kubelet hears of it. Before 2.2 only runc is asked."""
    out = subprocess.run([BUILD / SHIM, "-info"], check=True, capture_output=True,
                         stdin=subprocess.DEVNULL).stdout
    features = json.loads(out[out.index(b"{"):])
    assert "rro" in features["mountOptions"] and "user" not in features["linux"]["namespaces"]
    node = Node()
    try:
        handlers = {h.name: h.features for h in node.cri("Status").runtime_handlers}
        assert set(handlers) == ({"", "coracle", "runc"} if containerd_version() >= (2,) else set())
        for name in {"", "coracle"} & set(handlers):
            assert handlers[name].recursive_read_only_mounts == (containerd_version() >= (2, 2))
            assert not handlers[name].user_namespaces
    finally:
        node.close()


@pytest.mark.parametrize("args", [[], ["-id", "x"], ["-namespace", "k8s.io", "-id", "x", "fly"],
                                  ["-what"], ["-namespace"], ["-info", "start"]])
def test_wrong_command_line(args):
    run = subprocess.run([BUILD / SHIM, *args], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "usage:" in run.stderr and not run.stdout


def test_manifests_are_yaml():
    yaml = pytest.importorskip("yaml")
    for path in pathlib.Path(DEPLOY).glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["apiVersion"] and document["kind"]


def test_overhead_is_enough_for_what_it_says():
    """The comment's figures, its rule for other sizes, and the value agree."""
    text = (DEPLOY / "runtimeclass.yaml").read_text()
    memory = int(re.search(r"^ +memory: (\d+)Mi$", text, re.M)[1])
    said = " ".join(text.replace("#", " ").split())
    measured = float(re.search(r"at its most, ([\d.]+) MiB", said)[1])
    huge, small = map(int, re.search(r"guests of (\d+) GiB \((\d+) without", said).groups())
    base, per_huge, per_small = map(int, re.search(r"with (\d+) MiB \+ (\d+) \((\d+)\) MiB for each GiB",
                                                   said).groups())
    assert base >= 1.5 * measured
    assert base + per_huge * huge <= memory and base + per_small * small <= memory
