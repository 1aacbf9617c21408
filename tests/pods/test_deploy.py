"""test_deploy.py - the node installer and what it installs"""
import json
import pathlib
import re
import subprocess

import pytest

from node import BUILD, SHIM, TOP, why_not

DEPLOY = TOP / "k8s-shim/deploy"
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def install(root, *args):
    return subprocess.run([DEPLOY / "install-node", "--root", root, *args], check=True,
                          capture_output=True, text=True).stdout


def test_a_node_of_its_own(tmp_path):
    assert "restart containerd" in install(tmp_path)
    assert (tmp_path / "usr/local/bin" / SHIM).read_bytes() == (TOP / "build/release" /
                                                                SHIM).read_bytes()
    config = tmp_path / "etc/containerd/config.toml"
    first = config.read_text()
    dump = subprocess.run(["containerd", "--config", config, "config", "dump"], check=True,
                          capture_output=True, text=True).stdout
    assert 'runtime_type = "io.containerd.coracle.v2"' in dump
    assert 'pod_annotations = ["vm.coracle.dev/*"]' in dump
    assert 'ConfigPath = "/etc/coracle/coracle.json"' in dump
    assert install(tmp_path) == ""  # again: nothing to restart for
    assert config.read_text() == first
    json.loads((tmp_path / "etc/coracle/coracle.json").read_text())


def test_a_node_that_is_configured(tmp_path):
    config = tmp_path / "etc/containerd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n'
                      '  snapshotter = "native"\n')
    own = tmp_path / "etc/coracle/coracle.json"
    own.parent.mkdir()
    own.write_text('{"cpus-max": 2}')
    install(tmp_path)
    dump = subprocess.run(["containerd", "--config", config, "config", "dump"], check=True,
                          capture_output=True, text=True).stdout
    assert 'snapshotter = "native"' in dump and "io.containerd.coracle.v2" in dump
    assert own.read_text() == '{"cpus-max": 2}'
    install(tmp_path, "--uninstall")
    assert not (tmp_path / "usr/local/bin" / SHIM).exists()


def test_manual_page_names_every_key():
    source = (TOP / "k8s-shim/node_config.c").read_text()
    keys = re.findall(r'^\t\{ "([a-z-]+)", [A-Z]+, AT', source, re.M)
    page = (TOP / "docs/coracle.json.5").read_text()
    assert len(keys) == 13
    assert re.findall(r"^\.It Qq ([a-z-]+)$", page, re.M)[:len(keys) + 4] == [
        "vmm", "kernel", "initrd", "cmdline", "console", "transport", "log-level", "memory",
        "memory-max", "cpus", "cpus-max", "disk-direct", "annotations", "mode", "cloud-init-from",
        "kernel-args", "console"]
    assert set(keys) <= set(re.findall(r"^\.It Qq ([a-z-]+)$", page, re.M))


def test_shim_prints_its_version():
    out = subprocess.run([BUILD / SHIM, "-v"], check=True, capture_output=True, text=True).stdout
    assert out.startswith(SHIM)


@pytest.mark.parametrize("args", [[], ["-id", "x"], ["-namespace", "k8s.io", "-id", "x", "fly"],
                                  ["-what"], ["-namespace"]])
def test_wrong_command_line(args):
    run = subprocess.run([BUILD / SHIM, *args], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "usage:" in run.stderr and not run.stdout


def test_manifests_are_yaml():
    yaml = pytest.importorskip("yaml")
    for path in pathlib.Path(DEPLOY).glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["apiVersion"] and document["kind"]
