"""test_life.py - a pod's life is a machine's life, on a real containerd"""
import fcntl
import json
import os
import re
import struct
import subprocess
import threading

import pytest

import cri
from node import BUILD, TIMEOUT, Node, Pod, guest, until, why_not
from node import below as nodes_below
from stream import Attached

MIB = 1 << 20
ROOT = "/dev/rootdisk"


def kernel(node, name, cmdline=""):
    node.configure(kernel=str(guest(name)), cmdline=cmdline)


def no_failures(pod):
    text = pod.log()
    assert re.search(r"^ok ", text, re.M) and "\nfail" not in text and "done" in text.splitlines(), text


def test_from_creation_to_removal(node, pods, device):
    kernel(node, "hello", "some=thing")
    pod = pods()
    assert node.cri("PodSandboxStatus", pod_sandbox_id=pod.id).status.state == 0
    pod.start(devices=[(ROOT, device())])
    status = pod.ended()
    assert (status.exit_code, status.reason) == (0, "Completed")
    assert "command line: some=thing" in pod.log().splitlines()
    no_failures(pod)
    pod.remove_container()
    node.check_clean(pod=pod)
    pod.remove()
    node.check_clean()


def test_a_container_after_the_other(node, pods, device):
    """kubelet starts a container that has ended again in the same sandbox."""
    disk = device()
    pod = pods()
    for _ in range(3):
        pod.start(devices=[(ROOT, disk)])
        assert pod.ended().exit_code == 0
        no_failures(pod)
        pod.remove_container()


def test_events(node, pods, device):
    """Every event once, in the order of what happened."""
    events = node.events()
    kernel(node, "poweroff", "button")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("ready")
    node.ctr("tasks", "pause", pod.container)
    node.ctr("tasks", "resume", pod.container)
    pod.stop()
    container, sandbox = pod.container, pod.id
    pod.remove()

    def seen(which):
        return [topic for topic, text in events.seen() if which in text and "/tasks/" in topic]

    until("the pod's own end is told", lambda: "/tasks/delete" in seen(f'"{sandbox}"'))
    assert seen(f'"{container}"') == [f"/tasks/{t}" for t in (
        "create", "start", "paused", "resumed", "exit", "delete")]
    assert seen(f'"{sandbox}"') == [f"/tasks/{t}" for t in ("create", "start", "exit", "delete")]
    events.close()


def test_never_started(node, pods, device):
    pods()
    pods().create(devices=[(ROOT, device())])


def test_data_stays(node, pods, device):
    kernel(node, "blk", "serial=rootdisk sectors=8192")
    disk = device()
    first = pods().start(devices=[(ROOT, disk)])
    assert first.ended().exit_code == 0
    no_failures(first)
    first.remove()
    with open(disk, "rb") as f:
        written = f.read()
    assert written.strip(b"\0"), "the guest's writes have not reached the device"
    kernel(node, "hello")
    second = pods().start(devices=[(ROOT, disk)])
    assert second.ended().exit_code == 0
    second.remove()
    with open(disk, "rb") as f:
        assert f.read() == written


def machine(node):
    """The configuration of the one machine that runs."""
    path, = (node.dir / "run/pods").glob("*/vm.json")
    return json.loads(path.read_text())


def test_disks_in_order(node, pods, device):
    kernel(node, "hello", "exit=halt")
    root, data, logs = device(), device(), device()
    pod = pods().start(devices=[("/dev/data", data), (ROOT, root), ("/dev/logs", logs)])
    disks = machine(node)["disk"]
    assert [(d["path"], d["serial"], d["direct"]) for d in disks] == [
        (root, "rootdisk", True), (data, "data", True), (logs, "logs", True)]
    pod.remove()


def test_memory_is_the_limit(node, pods, device):
    kernel(node, "memory", f"ram={100 * MIB}")
    pod = pods().start(devices=[(ROOT, device())], memory=100 * MIB)
    assert pod.ended().exit_code == 0
    no_failures(pod)


@pytest.mark.parametrize("limit,cpus", [(2, 2), (1.5, 2), (0.25, 1)])
def test_cpus_are_the_limit(node, pods, device, limit, cpus):
    kernel(node, "smp", f"cpus={cpus}")
    pod = pods().start(devices=[(ROOT, device())], cpus=limit)
    assert pod.ended().exit_code == 0
    no_failures(pod)


@pytest.mark.parametrize("vhost", [None, "off"])
def test_vhost_is_the_nodes_choice(node, pods, device, vhost):
    kernel(node, "hello", "exit=halt")
    node.configure(vhost=vhost)
    pod = pods().start(devices=[(ROOT, device())])
    nic, = machine(node)["net"]
    assert nic.get("vhost") == vhost
    nic, = (d for d in node.info()["devices"] if d["type"] == "virtio-net")
    has = not vhost and os.path.exists("/dev/vhost-net")
    assert nic.get("worker") == ("vhost-net" if has else None)
    pod.remove()
    node.configure(vhost=None)


def test_nics_have_a_pair_of_queues_a_vcpu(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())], cpus=3)
    nic, = machine(node)["net"]
    assert len(set(nic["fd"].split(":"))) == 3
    pod.remove()


# ---- ends ----

def test_stop_presses_the_power_button(node, pods, device):
    kernel(node, "poweroff", "button")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("ready")
    pod.stop(timeout=int(TIMEOUT))
    status = pod.ended()
    assert (status.exit_code, status.reason) == (0, "Completed"), status
    assert "ok button" in pod.log()


def test_a_guest_that_ignores_the_button(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("done")
    pod.stop(timeout=1)
    assert pod.ended().exit_code == 137


@pytest.mark.parametrize("where", ["node", "image"])
@pytest.mark.parametrize("how", ["ged", "triple"])
def test_a_restart_stays_in_place(node, pods, device, how, where):
    kernel(node, "reset", f"how={how}")
    files = {"boot/vmlinuz": guest("reset").read_bytes()} if where == "image" else {"x": b""}
    if where == "image":
        node.configure(kernel=None)
    pod = pods().start(devices=[(ROOT, device())], image=disk_image(node, files))
    assert pod.ended().exit_code == 0
    assert re.findall(r"^start \d", pod.log(), re.M) == ["start 1", "start 2"]
    no_failures(pod)


def test_panic(node, pods, device, tmp_path):
    """A container that has failed, for whoever restarts it, and the reason where kubelet looks."""
    kernel(node, "panic")
    message = tmp_path / "message"
    message.touch()
    pod = pods().start(devices=[(ROOT, device())],
                       mounts=[("/dev/termination-log", str(message))])
    status = pod.ended()
    assert (status.exit_code, status.reason) == (6, "Error"), status
    said = "coracle: the guest's kernel panicked; its console has what it said (exit status 6)"
    assert pod.log().splitlines()[-1] == said
    assert message.read_text() == said


def test_sandbox_stopped_with_a_machine_in_it(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("done")
    pod.remove()
    node.check_clean()


# ---- while it runs ----

def test_pause_and_resume(node, pods, device):
    kernel(node, "hello", "echo exit=halt")
    pod = pods().start(devices=[(ROOT, device())], stdin=True)
    pod.line("ready")
    node.ctr("tasks", "pause", pod.container)
    assert re.search(rf"{pod.container}\s+\d+\s+PAUSED", node.ctr("tasks", "ls"))
    node.ctr("tasks", "resume", pod.container)
    assert re.search(rf"{pod.container}\s+\d+\s+RUNNING", node.ctr("tasks", "ls"))
    node.ctr("tasks", "pause", pod.container)
    pod.stop(timeout=1)  # a paused one, too
    assert pod.ended().exit_code == 137


def test_stop_of_a_paused_one(node, pods, device):
    kernel(node, "poweroff", "button")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("ready")
    node.ctr("tasks", "pause", pod.container)
    node.ctr("tasks", "kill", "-s", "SIGTERM", pod.container)
    assert pod.ended().exit_code == 0


def test_process(node, pods, device):
    """The machine's process is in the pod's control group and network namespace."""
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    pid = pod.pid()
    assert os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "coracle"
    sandbox = json.loads(node.cri("PodSandboxStatus", pod_sandbox_id=pod.id,
                                  verbose=True).info["info"])["pid"]
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{sandbox}/ns/net")
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as f:
        groups = f.read()
    assert f"/{node.name}/{pod.container}" in groups, groups
    assert re.search(rf"{pid}\b", node.ctr("tasks", "ps", pod.container))


def test_stats(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("done")
    stats = node.cri("ContainerStats", container_id=pod.container).stats
    assert 0 < stats.memory.working_set_bytes.value < 512 * MIB
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert "memory" in node.ctr("tasks", "metrics", pod.container)


def test_exec_fails_plainly(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    with pytest.raises(cri.Refused, match="no guest agent; use kubectl attach or ssh"):
        node.cri("ExecSync", container_id=pod.container, cmd=["id"], timeout=5)
    assert pod.status().state == 1


def test_update(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())], memory=64 * MIB)
    node.cri("UpdateContainerResources", container_id=pod.container, linux={"cpu_shares": 700})
    path, = (f"/sys/fs/cgroup/{c}/{node.name}/{pod.container}/{f}" for c, f in
             (("cpu", "cpu.shares"), ("", "cpu.weight"))
             if os.path.exists(f"/sys/fs/cgroup/{c}/{node.name}/{pod.container}/{f}"))
    with open(path, encoding="ascii") as f:
        assert int(f.read()) == (700 if "shares" in path else 1 + 698 * 9999 // 262142)
    node.cri("UpdateContainerResources", container_id=pod.container, linux={"cpuset_cpus": "0"})
    if os.path.exists("/sys/fs/cgroup/cpuset"):
        assert os.sched_getaffinity(pod.pid()) == {0}
        with pytest.raises(cri.Refused, match="cannot set cpuset.cpus"):
            node.cri("UpdateContainerResources", container_id=pod.container,
                     linux={"cpuset_cpus": "4095"})
    with pytest.raises(cri.Refused, match="RAM cannot change while it runs .67108864 bytes now.; "
                                          "with resizePolicy RestartContainer for memory "):
        node.cri("UpdateContainerResources", container_id=pod.container,
                 linux={"memory_limit_in_bytes": 128 * MIB})
    with pytest.raises(cri.Refused, match="vCPUs cannot change while it runs .1 now.; with "):
        node.cri("UpdateContainerResources", container_id=pod.container,
                 linux={"cpu_period": 100000, "cpu_quota": 400000})
    for quota in 40000, 100000:  # as many vCPUs: kubelet has changed the pod's own group
        node.cri("UpdateContainerResources", container_id=pod.container,
                 linux={"cpu_period": 100000, "cpu_quota": quota,
                        "memory_limit_in_bytes": 64 * MIB})


# ---- the console ----

def test_attach(node, pods, device):
    kernel(node, "hello", "echo")
    pod = pods().start(devices=[(ROOT, device())], stdin=True, tty=True)
    pod.line("ready\r?")
    url = node.cri("Attach", container_id=pod.container, stdin=True, tty=True, stdout=True).url
    console = Attached(url, TIMEOUT)
    console.write(b'{"Width":100,"Height":40}', channel=4)
    console.write(b"hello console")
    assert b"hello console" in console.read_until(b"console")
    console.write(b".")
    console.read_until(b"done")
    console.close()
    assert pod.ended().exit_code == 0


def attached(node, pod):
    return Attached(node.cri("Attach", container_id=pod.container, stdin=True, tty=True,
                             stdout=True).url, TIMEOUT)


@pytest.mark.parametrize("who", ["pod", "node"])
def test_virtio_console(node, pods, device, who):
    """The guest reads the window's size, and each change; it is there before the one who looks."""
    kernel(node, "console", "echo")
    node.configure(console="virtio" if who == "node" else None)
    pod = pods({"vm.coracle.dev/console": "virtio"} if who == "pod" else None)
    pod.start(devices=[(ROOT, device())], stdin=True, tty=True)
    pod.line("size 0x0\r?")
    for cols, rows in ((100, 40), (80, 24)):
        console = attached(node, pod)
        console.write(b'{"Width":%d,"Height":%d}' % (cols, rows), channel=4)
        console.read_until(b"size %dx%d\r\n" % (cols, rows))
        console.write(b"hello console")
        console.read_until(b"hello console")
        console.close()
    console = attached(node, pod)
    console.write(b".")
    assert pod.ended().exit_code == 0
    console.close()
    lines = pod.log().replace("\r", "").splitlines()
    assert "ok find" in lines  # of the serial port, before the console said anything
    assert "size 100x40" in lines and "done" not in lines


def test_virtio_console_after_a_restart(node, pods, device):
    """The window is the same, and the serial port counts until the new guest's console speaks."""
    kernel(node, "console", "echo silent")
    pod = pods({"vm.coracle.dev/console": "virtio"})
    pod.start(devices=[(ROOT, device())], stdin=True, tty=True)
    console = attached(node, pod)
    console.write(b'{"Width":90,"Height":30}', channel=4)
    for _ in range(2):
        console.write(b"x")
        console.read_until(b"woken")
        console.read_until(b"size 90x30")
        socket, = (node.dir / "run/pods").glob("*/control")
        subprocess.run([BUILD / "coracle", "ctl", socket, "reset"], check=True, capture_output=True)
    console.write(b".")
    assert pod.ended().exit_code == 0
    console.close()


def test_virtio_console_that_says_nothing(node, pods, device):
    """A kernel without the driver: the log is the serial port's."""
    kernel(node, "hello", "some=thing")
    pod = pods({"vm.coracle.dev/console": "virtio", "vm.coracle.dev/kernel-args": "more"})
    pod.start(devices=[(ROOT, device())])
    assert pod.ended().exit_code == 0
    assert "command line: some=thing console=hvc0 more" in pod.log().splitlines()
    no_failures(pod)


def test_no_such_console(node, pods, device):
    pod = pods({"vm.coracle.dev/console": "vga"})
    with pytest.raises(cri.Refused, match='annotation vm.coracle.dev/console: "vga" is neither serial'):
        pod.start(devices=[(ROOT, device())])
    node.configure(console="x")
    with pytest.raises(cri.Refused, match='"console" in this node\'s coracle.json: "x" is neither'):
        pods().start(devices=[(ROOT, device())])


def test_input_without_a_terminal(node, pods, device):
    kernel(node, "hello", "echo")
    pod = pods().start(devices=[(ROOT, device())], stdin=True)
    pod.line("ready")
    url = node.cri("Attach", container_id=pod.container, stdin=True, stdout=True).url
    console = Attached(url, TIMEOUT)
    console.write(b"one two three.")
    pod.line("one two three")
    console.close()
    assert pod.ended().exit_code == 0
    assert "\r" not in pod.log()


# ---- the image ----

def disk_image(node, files):
    name = f"coracle.test/disk-{len(node.images)}:1"
    node.images.add(name)
    return node.image(name, files)


def test_disk_in_the_image(node, pods):
    """Every pod writes to a copy of its own."""
    image = disk_image(node, {"disk/fedora.raw": bytes(4 * MIB)})
    kernel(node, "blk", "serial=rootdisk sectors=8192")
    for _ in range(2):
        pod = pods().start(image=image)
        assert pod.ended().exit_code == 0
        no_failures(pod)
    kernel(node, "hello", "exit=halt")
    pod = pods().start(image=image)
    path = machine(node)["disk"][0]["path"]
    with open(f"/proc/{pod.pid()}/root{path.replace('self', str(pod.pid()))}", "rb") as f:
        assert f.read() == bytes(4 * MIB)


def test_disk_volume(node, pods, tmp_path):
    """A volume at /disk is written itself, unless it is read-only."""
    (tmp_path / "disk.img").write_bytes(bytes(4 * MIB))
    kernel(node, "blk", "serial=rootdisk sectors=8192 ro")
    pod = pods().start(mounts=[("/disk", str(tmp_path))])
    assert pod.ended().exit_code == 0
    assert (tmp_path / "disk.img").read_bytes() == bytes(4 * MIB)


@pytest.mark.parametrize("files,sentence", [
    ({"disk/a.qcow2": b"QFI"}, "a.qcow2: qcow2 disks are not possible yet"),
    ({"disk/a.raw": bytes(MIB), "disk/b.img": bytes(MIB)}, "two images"),
    ({"disk/a.raw": "-> /etc/passwd"}, "cannot open /disk/a.raw"),
    ({"disk/x": b""}, "running an ordinary image in a machine is not possible yet"),
    ({"disk/a.raw": b"x"}, "disk /disk/a.raw has 1 bytes; a disk has at least 512"),
])
def test_images_that_do_not_do(node, pods, files, sentence):
    pod = pods()
    with pytest.raises(cri.Refused, match=sentence):
        pod.start(image=disk_image(node, files))


def test_kernel_in_the_image(node, pods, device):
    image = disk_image(node, {"boot/vmlinuz-1": guest("hello").read_bytes(),
                              "boot/vmlinuz": "-> vmlinuz-1", "boot/initrd.img": b"abc"})
    kernel(node, "poweroff")
    pod = pods().start(image=image, devices=[(ROOT, device())])
    assert pod.ended().exit_code == 0
    assert "module 3 bytes" in pod.log()


# ---- annotations ----

def test_kernel_args(node, pods, device):
    kernel(node, "hello", "from=node")
    pod = pods({"vm.coracle.dev/kernel-args": "from-pod=yes"}).start(devices=[(ROOT, device())])
    pod.line("command line: from=node from-pod=yes")


def test_annotations_that_are_not_allowed(node, pods, device):
    node.configure(annotations=["mode"])
    pod = pods({"vm.coracle.dev/kernel-args": "init=/bin/sh"})
    with pytest.raises(cri.Refused, match="kernel-args is not allowed on this node"):
        pod.start(devices=[(ROOT, device())])


def test_annotation_that_is_not_there(node, pods, device):
    with pytest.raises(cri.Refused, match="vm.coracle.dev/cloud-init: there is none of that name"):
        pods({"vm.coracle.dev/cloud-init": "/cidata"}).start(devices=[(ROOT, device())])


def test_mode_that_is_not_there(node, pods):
    pod = pods({"vm.coracle.dev/mode": "block"})
    with pytest.raises(cri.Refused, match="no volumeDevices entry has devicePath /dev/rootdisk"):
        pod.start()


def test_cloud_init(node, pods, device, tmp_path):
    (tmp_path / "userdata").write_text("#cloud-config\n")
    kernel(node, "hello", "exit=halt")
    pod = pods({"vm.coracle.dev/cloud-init-from": "/cidata"}, hostname="another").start(
        devices=[(ROOT, device())], mounts=[("/cidata", str(tmp_path))])
    disk = machine(node)["disk"][1]
    assert (disk["serial"], disk["read-only"]) == ("cidata", True)

    def read(name):
        return subprocess.run(["bsdtar", "-xOf", disk["path"], name], check=True,
                              capture_output=True, text=True).stdout

    assert read("user-data") == "#cloud-config\n"
    assert "local-hostname: another\n" in read("meta-data")
    network = read("network-config")
    assert pod.ip() in network and "version: 2" in network, network


# ---- the network ----

def test_the_guest_has_the_pods_address(node, pods, device):
    kernel(node, "pod", "nics=1")
    pod = pods().start(devices=[(ROOT, device())], stdin=True)
    pod.line("ready")
    assert pod.ip() in pod.log()
    subprocess.run(["ping", "-c", "1", "-W", "5", pod.ip()], check=True, timeout=TIMEOUT,
                   stdout=subprocess.DEVNULL)


def test_host_network(node, pods, device):
    """The node's interfaces stay the node's."""
    pod = pods(linux={"cgroup_parent": f"/{node.name}",
                      "security_context": {"namespace_options": {"network": 2}}})
    with pytest.raises(cri.Refused, match="leave hostNetwork out of its spec"):
        pod.start(devices=[(ROOT, device())])


def test_without_a_pod(node, tmp_path):
    """`ctr run`: a container of its own."""
    kernel(node, "hello", "exit=halt")
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    node.ctr("run", "-d", "--runtime", "io.containerd.coracle.v2", "--runtime-config-path",
             node.dir / "coracle.json", "--mount",
             f"type=bind,src={tmp_path},dst=/disk,options=rbind:rw", "coracle.test/vm:1", "alone")
    assert re.search(r"alone\s+\d+\s+RUNNING", node.ctr("tasks", "ls"))
    node.ctr("tasks", "kill", "-s", "SIGKILL", "alone")
    until("it has ended", lambda: "STOPPED" in node.ctr("tasks", "ls"))
    node.ctr("tasks", "rm", "alone")
    node.ctr("containers", "rm", "alone")
    node.check_clean()


# ---- control groups of version 2 ----

UNIFIED = ("unshare", "-m", "sh", "-c", "umount -l /sys/fs/cgroup && "
           "mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"", "sh")


@pytest.mark.parametrize("parent", ["/{}", "/{}.slice"])
def test_version_2_groups(device, parent):
    """A node whose /sys/fs/cgroup is of version 2, with controllers or without."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    if subprocess.run([*UNIFIED, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("control groups of version 2 cannot be mounted here")
    node = Node(prefix=UNIFIED, kernel=str(guest("hello")), cmdline="exit=halt")
    try:
        parent = parent.format(node.name)
        pod = Pod(node, linux={"cgroup_parent": parent}).run().start(devices=[(ROOT, device())])
        pod.line("done")
        below = (f"{parent}/cri-containerd-{pod.container}.scope" if parent.endswith(".slice")
                 else f"{parent}/{pod.container}")
        with open(f"/proc/{pod.pid()}/cgroup", encoding="ascii") as f:
            assert f"0::{below}\n" in f.read()
        assert "memory" in node.ctr("tasks", "metrics", pod.container)
        stats = node.cri("ContainerStats", container_id=pod.container).stats
        assert stats.cpu.usage_core_nano_seconds.value > 0
        groups = nodes_below("/sys/fs/cgroup", lambda p: p.endswith(below))
        assert groups
        pod.remove()
        assert not any(map(os.path.exists, groups))
        node.check_clean()
    finally:
        node.close()
        for path in nodes_below("/sys/fs/cgroup", lambda p: p.endswith(f"/{node.name}.slice")):
            os.rmdir(path)


# ---- refused ----

def test_one_device_in_two_pods(node, pods, device):
    """What is refused says which device, and which pod has it."""
    kernel(node, "hello", "exit=halt")
    disk = device()
    pods().start(devices=[(ROOT, device())])  # another one, which has nothing to do with it
    first = pods().start(devices=[(ROOT, disk)])
    second = pods()
    with pytest.raises(cri.Refused, match=f"disk {disk} is in use by another virtual machine "
                                          rf"\({first.name}-{first.container[:8]}\)(: unknown)?$"):
        second.start(devices=[(ROOT, disk)])
    assert first.status().state == 1


def test_a_device_to_read(node, pods, device):
    """A claim that a pod has with readOnly: its machine cannot write it, and several may have it."""
    kernel(node, "hello", "exit=halt")
    shared, own = device(), device()
    first = pods().start(devices=[(ROOT, own), ("/dev/base", shared, "r")])
    assert [(d["serial"], d["read-only"]) for d in machine(node)["disk"]] == [
        ("rootdisk", False), ("base", True)]
    second = pods().start(devices=[(ROOT, shared, "r")])
    with pytest.raises(cri.Refused, match=f"disk {shared} is in use by another virtual machine"):
        pods().start(devices=[(ROOT, shared)])
    assert first.status().state == second.status().state == 1


def test_a_device_that_is_no_pods(node, pods, device):
    """Nobody is named who is not known."""
    disk = device()
    with open(disk, "rb+") as f:
        fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
        with pytest.raises(cri.Refused, match=f"disk {disk} is in use by another virtual machine: "):
            pods().start(devices=[(ROOT, disk)])


def test_volumes_the_machine_does_not_see(node, pods, device, tmp_path):
    """A container's data would be at that place: say that it is not. What every pod has is no news."""
    kernel(node, "hello", "exit=halt")
    (tmp_path / "user-data").write_text("#cloud-config\n")
    pod = pods(annotations={"vm.coracle.dev/cloud-init-from": "/cidata"})
    pod.start(devices=[(ROOT, device())], mounts=[(at, str(tmp_path)) for at in (
        "/data", "/cidata", "/etc/app", "/var/run/secrets/kubernetes.io/serviceaccount")])
    pod.line("done")
    line, = (text for text in pod.log().splitlines() if text.startswith("coracle: "))
    assert line == "coracle: not in the machine, which sees block devices only: /data, /etc/app"
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("done")
    assert "coracle: " not in pod.log()


def test_two_machines_in_one_pod(node, pods, device):
    kernel(node, "hello", "exit=halt")
    pod = pods().start(devices=[(ROOT, device())])
    first = pod.container
    with pytest.raises(cri.Refused, match="the pod has a machine already .container vm.: a pod of this "
                                          "runtime class has one container, without sidecars"):
        pod.start(devices=[(ROOT, device())])
    assert node.cri("ContainerStatus", container_id=first).status.state == 1


@pytest.mark.parametrize("change,create,sentence", [
    ({"kernel": "/nowhere/vmlinux"}, {}, "cannot open kernel /nowhere/vmlinux"),
    ({"kernel": None}, {}, "no kernel: the image has no /boot/vmlinuz"),
    ({"vmm": "/nowhere/coracle"}, {}, "/nowhere/coracle"),
    ({"cpus-max": 2}, {"cpus": 4}, "comes to 4 vCPUs, this node allows 2"),
    ({"memory-max": "1G"}, {"memory": 2048 * MIB}, "is over what this node allows"),
    ({}, {"memory": MIB}, "the memory limit of 1048576 bytes is guest RAM, and a machine has at least"),
    ({"memori": 1}, {}, 'there is no key "memori"'),
])
def test_what_cannot_be(node, pods, device, change, create, sentence):
    before = dict(node.config)
    pod = pods()
    try:
        node.configure(**change)
        with pytest.raises(cri.Refused, match=sentence):
            pod.start(devices=[(ROOT, device())], **create)
    finally:
        node.config = before
        node.configure()


def test_a_disk_without_a_sector(node, pods, device):
    pod = pods()
    with pytest.raises(cri.Refused, match="disk /dev/loop.* has 0 bytes; a disk has at least 512"):
        pod.start(devices=[(ROOT, device(size=100))])


def test_twenty_at_once(node, pods, device):
    kernel(node, "hello", "exit=halt")
    made = [pods(run=False) for _ in range(20)]
    disks = [device() for _ in made]
    errors = []

    def run(pod, disk):
        try:
            pod.run().start(devices=[(ROOT, disk)])
        except Exception as e:  # pylint: disable=broad-except
            errors.append(e)

    threads = [threading.Thread(target=run, args=a) for a in zip(made, disks)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors
    for pod in made:
        until(f"{pod.name} runs", lambda pod=pod: "done" in pod.log())
