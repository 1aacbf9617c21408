#!/usr/bin/python3
"""node_tool.py - what test_two_nodes.py needs done inside a node of the lab

    node_tool.py nbd HOST PORT EXPORT DEVICE    attach; stays until it is told to end
    node_tool.py clock-serve PORT               tell the other node the time
    node_tool.py clock-set HOST PORT            take it from there; prints how far ours was ahead, and is
    node_tool.py peer HOST PORT BRIDGE          talk to guest_watch.py; prints a line of JSON for each
                                                answer, and for each announcement (RARP) seen
"""
import fcntl
import json
import os
import select
import socket
import struct
import sys
import time

# linux/nbd.h; the handshake is the fixed newstyle of the NBD protocol's doc/proto.md
NBD_SET_SOCK, NBD_SET_BLKSIZE, NBD_DO_IT, NBD_CLEAR_SOCK = 0xab00, 0xab01, 0xab03, 0xab04
NBD_SET_SIZE_BLOCKS, NBD_SET_FLAGS = 0xab07, 0xab0a
NBD_MAGIC, NBD_OPTION = b"NBDMAGIC", b"IHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES, OPT_EXPORT_NAME = 1, 2, 1
SECTOR = 512

ETH_P_RARP = 0x8035


def exactly(s, n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        if not piece:
            raise SystemExit("node_tool: the NBD server hangs up")
        data += piece
    return data


def nbd(host, port, export, device):
    s = socket.create_connection((host, int(port)))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if exactly(s, 16) != NBD_MAGIC + NBD_OPTION:
        raise SystemExit("node_tool: no NBD server of the new style")
    exactly(s, 2)
    name = export.encode()
    s.sendall(struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES) + NBD_OPTION +
              struct.pack(">II", OPT_EXPORT_NAME, len(name)) + name)
    size, flags = struct.unpack(">QH", exactly(s, 10))
    d = os.open(device, os.O_RDWR)
    fcntl.ioctl(d, NBD_CLEAR_SOCK)
    fcntl.ioctl(d, NBD_SET_BLKSIZE, SECTOR)
    fcntl.ioctl(d, NBD_SET_SIZE_BLOCKS, size // SECTOR)
    fcntl.ioctl(d, NBD_SET_FLAGS, flags)
    fcntl.ioctl(d, NBD_SET_SOCK, s.fileno())
    print(f"{device}: {size} bytes", flush=True)
    fcntl.ioctl(d, NBD_DO_IT)


def clock_serve(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", int(port)))
    print("listening", flush=True)
    while True:
        _, who = s.recvfrom(64)
        s.sendto(struct.pack("<q", time.time_ns()), who)


def ahead(s, peer):
    """(ns, uncertainty): how far our clock is ahead of the peer's, by the quickest of many answers."""
    best = None
    for _ in range(30):
        sent = time.time_ns()
        s.sendto(b"?", peer)
        try:
            theirs = struct.unpack("<q", s.recv(64))[0]
        except socket.timeout:
            continue
        came = time.time_ns()
        if best is None or came - sent < 2 * best[1]:
            best = ((sent + came) // 2 - theirs, (came - sent) // 2)
    return best


def clock_set(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(2)
    peer = (host, int(port))
    before = ahead(s, peer)
    time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() - before[0])
    after = ahead(s, peer)
    print(json.dumps({"before_ns": before[0], "ahead_ns": after[0], "within_ns": after[1]}))


class Peer:
    def __init__(self, host, port, bridge):
        self.number = 0
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_RARP))
        self.wire.bind((bridge, ETH_P_RARP))
        self.s = socket.create_connection((host, int(port)))
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = self.s.makefile("rb")

    def ask(self, word=None):
        """(guest's clock, least, most that it is ahead of ours, its monotonic clock): all ns"""
        if word is None:
            self.number += 1
            word = str(self.number)
        sent = time.time_ns()
        self.s.sendall(f"{word}\n".encode())
        line = self.lines.readline().split()
        came = time.time_ns()
        if len(line) != 3 or line[0].decode() != word.split()[0]:
            raise SystemExit(f"node_tool: asked for {word}, got {line}")
        return {"ns": came, "took": came - sent, "least": int(line[1]) - came,
                "most": int(line[1]) - sent, "monotonic": int(line[2])}

    def set_clock(self):
        """As a time server would: ours, by the quickest of many answers."""
        best = min((self.ask() for _ in range(50)), key=lambda a: a["took"])
        self.ask(f"set {-(best['least'] + best['most']) // 2}")

    def announcements(self):
        while select.select([self.wire], [], [], 0)[0]:
            frame = self.wire.recv(2048)
            print(json.dumps({"rarp": frame[22:28].hex(":")}), flush=True)

    def run(self):
        self.set_clock()
        while True:
            self.announcements()
            answer = self.ask()
            # struct tcp_info: tcpi_total_retrans
            answer["retransmits"] = struct.unpack_from(
                "I", self.s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 100)[0]
            answer["number"] = self.number
            print(json.dumps(answer), flush=True)
            time.sleep(0.1)


def main():
    verb, *words = sys.argv[1:]
    if verb == "peer":
        Peer(*words).run()
    else:
        {"nbd": nbd, "clock-serve": clock_serve, "clock-set": clock_set}[verb](*words)


main()
