"""test_debian_pod.py - a pod that is a Debian machine, on a real containerd with real CNI plugins

One guest is looked at from all sides: two vCPUs, three disks, a virtio console, a bridge with IPv6, an ipvlan
and a macvlan network, each with an MTU of its own. It gets its addresses by DHCP at first, and from cloud-init
after its reboot. Others have a shell for their init, which is there much sooner.
"""
import contextlib
import json
import os
import re
import threading

import pytest
import yaml

import cri
import debian_pod
from debian import BOOT, COMMAND, IMAGE, assert_clean, host, scratch_dir, sparse
from node import TIMEOUT, Node, Pod, until
from podlab import Netns

WHY_NOT = debian_pod.why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

MIB = 1 << 20
ROOT = "/dev/rootdisk"
MEMORY = 600 * MIB
# Interfaces beside eth0: kind, mode, MTU, and the guest's name for it. Each has a parent link and a /24.
LINKS = {"net1": ("ipvlan", "l2", 9000, "eth1"), "net2": ("macvlan", "bridge", 1500, "eth2")}
PARENT = {nic: f"cor{nic}p{os.getpid()}" for nic in LINKS}
NETWORK = {nic: f"10.{125 + i}.{os.getpid() % 250}" for i, nic in enumerate(LINKS)}
SHELL = {"vm.coracle.dev/kernel-args": "init=/bin/sh"}
CLOUD_INIT = {"vm.coracle.dev/cloud-init-from": "/cidata"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f pilot@test"
# Of cloud-init's modules those that work on this: each is a second or more of an emulated guest's time.
USER_DATA = f"""\
#cloud-config
cloud_init_modules: [write-files, set_hostname, users-groups]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
users:
  - name: pilot
    shell: /bin/sh
    ssh_authorized_keys: ["{KEY}"]
write_files:
  - path: /etc/from-user-data
    permissions: "0640"
    content: |
      äöü
runcmd:
  - cat /var/lib/cloud/data/instance-id >>/root/instances
"""


def attachment(nic, leases):
    kind, mode, mtu, _ = LINKS[nic]
    return {"type": kind, "master": PARENT[nic], "mode": mode, "mtu": mtu, "ipam": {
        "type": "host-local", "dataDir": leases, "ranges": [[{"subnet": f"{NETWORK[nic]}.0/24"}]]}}


@pytest.fixture(scope="module", name="node")
def fixture_node():
    for parent in PARENT.values():
        host("ip", "link", "add", parent, "mtu", 9000, "type", "dummy")
        host("ip", "link", "set", parent, "up")
    with scratch_dir() as leases:
        node = Node(bridge={"mtu": 1400}, six=True, **debian_pod.config(),
                    attachments=[attachment(nic, leases) for nic in LINKS])
        yield node
        node.close()
    for parent in PARENT.values():
        host("ip", "link", "del", parent)


@pytest.fixture(scope="module", name="claims")
def fixture_claims():
    """Two block devices that outlive the pods that have them."""
    with scratch_dir() as directory, debian_pod.root_device(directory) as root, \
            debian_pod.loop_device(sparse(directory + "/data", 64 * MIB)) as data:
        yield [(ROOT, root), ("/dev/data", data)]


class Machine:
    """A pod with a Debian guest that has come up to its login."""

    def __init__(self, stack, node, claims):
        self.node, self.claims = node, dict(claims)
        secret = stack.enter_context(scratch_dir())
        with open(f"{secret}/user-data", "w", encoding="utf-8") as f:
            f.write(USER_DATA)
        self.pod = Pod(node, {**CLOUD_INIT, "vm.coracle.dev/console": "virtio"}).run()
        stack.callback(self.pod.remove)
        # The root disk is the first one, wherever it is in the spec.
        self.pod.start(devices=claims[::-1], mounts=[("/cidata", secret)], memory=MEMORY,
                       cpus=2, stdin=True, tty=True)
        self.console = stack.enter_context(contextlib.closing(debian_pod.Console(self.pod)))
        self.resize(100, 40)
        self.console.login()
        self.sh = self.console.sh
        self.sh("mount -o ro /dev/disk/by-label/cidata /mnt")
        self.nics = yaml.safe_load(self.sh("cat /mnt/network-config"))["ethernets"]
        self.add_ipv6()

    def add_ipv6(self):
        """From cloud-init's network-config, as DHCP does not carry it."""
        nic = self.nics["eth0"]
        address, = (a for a in nic["addresses"] if ":" in a)
        gateway, = (r["via"] for r in nic["routes"] if r["to"] == "::/0")
        self.sh(f"ip addr add {address} dev eth0 nodad && ip -6 route replace default via {gateway} "
                "dev eth0")
        self.six = address.split("/", maxsplit=1)[0]

    def resize(self, cols, rows):
        """As kubectl does when its terminal's window has another size."""
        self.console.attached.write(b'{"Width":%d,"Height":%d}' % (cols, rows), channel=4)


@pytest.fixture(scope="class", name="debian")
def fixture_debian(node, claims):
    with contextlib.ExitStack() as stack:
        yield Machine(stack, node, claims)


def ping(address, *args, prefix=()):
    host(*prefix, "ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, *args, address)


class TestOneGuest:
    def test_memory_and_processors(self, debian):
        """The limits, exactly: what the firmware's map lacks is the hole below 1 MiB."""
        lines = debian.sh("cd /sys/firmware/memmap && grep -l 'System RAM' */type | while read -r t; "
                          "do d=${t%/type}; echo $(cat $d/start) $(cat $d/end); done").splitlines()
        ram = sum(int(end, 16) + 1 - int(start, 16) for start, end in map(str.split, lines))
        assert MEMORY - MIB < ram <= MEMORY
        total = int(debian.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")) << 10
        assert 0.9 * MEMORY < total < MEMORY
        assert debian.sh("nproc") == "2"

    def test_console(self, debian):
        """The login is on hvc0, the kernel's console, and as large as the window of who looks."""
        assert debian.sh("tty") == "/dev/hvc0"
        assert debian.sh("cat /proc/consoles").startswith("hvc0 ")
        for cols, rows in ((100, 40), (132, 43)):
            debian.resize(cols, rows)
            debian.sh(f'until [ "$(stty size)" = "{rows} {cols}" ]; do sleep 0.1; done')

    def test_stats(self, debian):
        stats = debian.node.cri("ContainerStats", container_id=debian.pod.container).stats
        assert 100 * MIB < stats.memory.working_set_bytes.value < MEMORY + 32 * MIB
        assert stats.cpu.usage_core_nano_seconds.value > 1e9

    def test_disks(self, debian):
        assert debian.sh("findmnt -no SOURCE /") == "/dev/vda"
        for serial, name in (("rootdisk", "vda"), ("data", "vdb"), ("cidata", "vdc")):
            assert debian.sh(f"readlink -f /dev/disk/by-id/virtio-{serial}") == f"/dev/{name}"
        assert debian.sh("blockdev --getsize64 /dev/vdb") == str(64 * MIB)

    def test_cloud_init(self, debian):
        assert debian.sh("cat /mnt/user-data") + "\n" == USER_DATA
        assert f"local-hostname: {debian.pod.name}" in debian.sh("cat /mnt/meta-data").splitlines()
        assert debian.sh("umount /mnt; blockdev --getro /dev/vdc") == "1"

    @pytest.mark.parametrize("name,mtu,inside", [("eth0", 1400, "eth0")] + [
        (nic, mtu, inside) for nic, (_, _, mtu, inside) in LINKS.items()])
    def test_addresses(self, debian, name, mtu, inside):
        """systemd-networkd has by DHCP what CNI gave the pod; the MAC address and the MTU are the
        link's."""
        link, = debian.pod.ip_json("addr", "show", "dev", name)
        guest, = json.loads(debian.sh(f"ip -j addr show dev {inside}"))
        assert link["mtu"] == guest["mtu"] == mtu
        assert link["address"] == guest["address"] == debian.nics[name]["match"]["macaddress"]

        def addresses(of):
            return {(a["local"], a["prefixlen"]) for a in of["addr_info"] if a["scope"] == "global"}

        assert addresses(link) == addresses(guest)

    def test_name_server(self, debian):
        index = debian.sh("cat /sys/class/net/eth0/ifindex")
        lease = debian.sh(f"cat /run/systemd/netif/leases/{index}").splitlines()
        assert "DNS=192.0.2.53" in lease and "DOMAIN_SEARCH_LIST=example.test" in lease
        assert f"HOSTNAME={debian.pod.name}" in lease

    def test_ping(self, debian):
        """From the node, in packets as large as the MTU lets them be."""
        ping(debian.pod.ip(), "-M", "do", "-s", 1400 - 28)
        ping(debian.six, "-6", "-M", "do", "-s", 1400 - 48)

    def test_vhost(self, debian):
        """Where the node has it, its kernel moves the frames, by a thread for each pair of queues."""
        has = os.path.exists("/dev/vhost-net")
        workers = {d["name"]: d.get("worker") for d in debian.node.info()["devices"]
                   if d["type"] == "virtio-net"}
        assert workers == {f"net.{nic}": "vhost-net" if has else None for nic in ("eth0", *LINKS)}
        pid = debian.pod.pid()
        kernels = host("ps", "-eL", "-o", "comm=").split("\n").count(f"vhost-{pid}")
        assert kernels == (2 * len(workers) if has else 0)

    @pytest.mark.parametrize("nic", LINKS)
    def test_other_links(self, debian, nic):
        """A container on the same parent sees the pod's own address."""
        kind, mode, mtu, _ = LINKS[nic]
        peer = Netns("peer")
        try:
            host("ip", "link", "add", "link", PARENT[nic], "name", nic, "mtu", mtu, "netns",
                 peer.name, "type", kind, "mode", mode)
            peer("ip", "addr", "add", f"{NETWORK[nic]}.200/24", "dev", nic)
            peer("ip", "link", "set", nic, "up")
            own, = (a.split("/")[0] for a in debian.nics[nic]["addresses"])
            ping(own, "-M", "do", "-s", mtu - 28, prefix=peer.prefix)
            debian.sh(f"ping -c 2 -W 30 -M do -s {mtu - 28} {NETWORK[nic]}.200")
            debian.sh("iperf3 -s -D --one-off >/dev/null; "
                      "until ss -Hltn sport = 5201 | grep -q .; do sleep 0.1; done")
            report = json.loads(peer("iperf3", "-J", "-c", own, "-n", "2M", "-w", "128K", "-R"))
            assert "error" not in report and report["end"]["sum_received"]["bytes"] >= MIB
        finally:
            peer.remove()

    @pytest.mark.parametrize("back", [False, True])
    def test_iperf(self, debian, back):
        debian.sh("iperf3 -s -D --one-off >/dev/null; "
                  "until ss -Hltn sport = 5201 | grep -q .; do sleep 0.1; done")
        report = json.loads(host("iperf3", "-J", "-c", debian.pod.ip(), "-n", "4M", "-w", "128K",
                                 *(["-R"] if back else [])))
        # The client ends when it has written all; what is in the sockets' buffers then was not
        # received, and buffers that nobody limits hold all of it.
        assert "error" not in report and report["end"]["sum_received"]["bytes"] >= 2 * MIB

    def test_one_claim_in_two_pods(self, debian):
        """What is refused says which device, and who has it; kubelet puts it in the pod's events."""
        root, pod = debian.claims[ROOT], debian.pod
        other = Pod(debian.node).run()
        try:
            with pytest.raises(cri.Refused, match=f"disk {root} is in use by another virtual machine.*"
                                                  f"{pod.name}-{pod.container[:8]}"):
                other.start(devices=[(ROOT, root)])
        finally:
            other.remove()
        assert debian.sh("echo still here") == "still here"

    def test_reboot(self, debian):
        """It stays the same pod, and its console goes on."""
        debian.sh("echo written >/root/file && echo written >/dev/vdb && "
                  "rm /etc/systemd/system-generators/cloud-init-generator && sync")
        pid = debian.pod.pid()
        debian.console.send(b"systemctl reboot\n")
        debian.console.login()
        assert (debian.pod.status().state, debian.pod.pid()) == (1, pid)
        assert debian.sh("cat /root/file; head -c 8 /dev/vdb") == "written\nwritten"
        until("it has its address again", lambda: debian.pod.ip() in debian.sh("ip addr"), COMMAND)
        ping(debian.pod.ip())

    def test_user_data(self, debian):
        debian.sh("until [ -e /run/cloud-init/result.json ]; do sleep 0.2; done", BOOT)
        result = json.loads(debian.sh("cat /run/cloud-init/result.json"))["v1"]
        assert result["errors"] == [] and "DataSourceNoCloud" in result["datasource"]
        assert debian.sh("grep -E 'WARN|Traceback|ERROR' /var/log/cloud-init.log || true") == ""
        assert debian.sh("hostname") == debian.pod.name
        assert debian.sh("stat -c %a /etc/from-user-data; cat /etc/from-user-data") == "640\näöü"
        assert debian.sh("cd ~pilot/.ssh && stat -c '%a %U' . authorized_keys && cat authorized_keys") == \
            f"700 pilot\n600 pilot\n{KEY}"
        assert debian.sh("cat /root/instances") == debian.pod.config["metadata"]["uid"]

    @pytest.mark.parametrize("name", ["eth0", *LINKS])
    def test_network_config(self, debian, name):
        """All that the pod's link has, under its name there, and nothing by DHCP."""
        link, = debian.pod.ip_json("addr", "show", "dev", name)
        guest, = json.loads(debian.sh(f"ip -j addr show dev {name}"))
        assert [guest[k] for k in ("address", "mtu")] == [link[k] for k in ("address", "mtu")]

        def addresses(of):
            return {(a["local"], a["prefixlen"]) for a in of["addr_info"] if a["scope"] == "global"}

        assert addresses(guest) == addresses(link)
        assert not any(a.get("dynamic") for a in guest["addr_info"])
        index = guest["ifindex"]
        told = debian.sh(f"cat /run/systemd/netif/links/{index}").splitlines()
        assert "DNS=192.0.2.53" in told and "DOMAINS=example.test" in told
        assert debian.sh(f"test ! -e /run/systemd/netif/leases/{index}") == ""

    def test_default_route(self, debian):
        route, = json.loads(debian.sh("ip -j route show default"))
        assert route["gateway"] == debian.pod.ip_json("route", "show", "default")[0]["gateway"]
        ping(debian.pod.ip(), "-M", "do", "-s", 1400 - 28)
        ping(debian.six, "-6", "-M", "do", "-s", 1400 - 48)

    def test_end(self, debian):
        """`kubectl delete` presses the power button; the guest shuts down by itself."""
        debian.pod.stop(timeout=COMMAND)
        status = debian.pod.ended()
        assert (status.exit_code, status.reason) == (0, "Completed")
        assert_clean(debian.claims[ROOT])
        assert len(re.findall(r"^Debian GNU/Linux .* hvc0", debian.pod.log(), re.M)) == 2
        debian.pod.remove()
        debian.node.check_clean()


def shell(pod):
    """The console of a guest whose init is a shell."""
    console = debian_pod.Console(pod)
    console.send(b"\n")  # its prompt may have come before us
    console.prompt(BOOT)
    return console


def cloud_init(console):
    """What its services do at a start, without systemd. The instances it has been so far."""
    console.sh("rm -rf /run/cloud-init; export PATH=/usr/sbin:/usr/bin; "
               "cloud-init init --local && cloud-init init && cloud-init modules --mode config && "
               "cloud-init modules --mode final", BOOT)
    return console.sh("cat /root/instances").splitlines()


def test_the_next_pod_of_the_claims(pods, claims):
    """It finds what the last one has written, and is another instance to cloud-init, once. And it takes
    no notice of the power button."""
    with scratch_dir() as secret:
        with open(f"{secret}/user-data", "w", encoding="utf-8") as f:
            f.write(USER_DATA + "hostname: another\n")
        pod = pods({**SHELL, **CLOUD_INIT}).start(devices=claims, mounts=[("/cidata", secret)], stdin=True,
                                                  tty=True)
        console = shell(pod)
        assert console.sh("cat /root/file; head -c 8 /dev/vdb") == "written\nwritten"
        first, = console.sh("cat /root/instances").splitlines()
        assert cloud_init(console) == [first, pod.config["metadata"]["uid"]]
        assert console.sh("hostname") == "another"
        assert f"Address={pod.ip()}/" in console.sh("cat /etc/systemd/network/10-cloud-init-eth0.network")
        assert cloud_init(console) == [first, pod.config["metadata"]["uid"]]
        pod.stop(timeout=2)
        assert pod.ended().exit_code == 137
        console.close()


def small_root(directory):
    """A root file system with a shell and no more, from the guest's."""
    tree, image = f"{directory}/tree", f"{directory}/small.raw"
    with debian_pod.loop_device(f"{IMAGE}/root.ext4") as device:
        os.mkdir(f"{directory}/mnt")
        host("mount", "-o", "ro,noload", device, f"{directory}/mnt")
        try:
            for name in ("dev", "proc", "sys", "run", "root", "etc", "usr/bin", "usr/lib64",
                         "usr/lib/x86_64-linux-gnu"):
                os.makedirs(f"{tree}/{name}")
            for name in ("bin", "lib", "lib64"):
                os.symlink(f"usr/{name}", f"{tree}/{name}")
            for name in ("bin/dash", "bin/sh", "bin/cat", "bin/stty", "bin/sync",
                         "lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6",
                         "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
                host("cp", "-a", f"{directory}/mnt/usr/{name}", f"{tree}/usr/{name}")
        finally:
            host("umount", f"{directory}/mnt")
    host("mkfs.ext4", "-q", "-d", tree, sparse(image, 16 * MIB))
    with open(image, "rb") as f:
        return f.read()


def test_disks_in_the_image(node, pods):
    """Three at once, each with the kernel and a copy of the disk in their image."""
    with scratch_dir() as directory:
        files = {"disk/debian.raw": small_root(directory)}
    for name in ("vmlinuz", "initrd.img"):
        files[f"boot/{name}"] = (IMAGE / name).read_bytes()
    image = node.image("coracle.test/debian:1", files)
    node.configure(kernel=None, initrd=None)
    made = [pods(SHELL, run=False) for _ in range(3)]
    errors = []

    def start(pod):
        try:
            pod.run().start(image=image, memory=200 * MIB, stdin=True, tty=True)
        except Exception as e:  # pylint: disable=broad-except
            errors.append(e)

    threads = [threading.Thread(target=start, args=(pod,)) for pod in made]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors
    consoles = [shell(pod) for pod in made]
    for pod, console in zip(made, consoles):
        assert console.sh("cat /mark || true").endswith("No such file or directory")
        console.sh(f"echo {pod.name} >/mark && sync")
    for pod, console in zip(made, consoles):
        assert console.sh("cat /mark") == pod.name
        console.close()
    for pod in made:
        pod.remove()
