#!/usr/bin/python3
"""guest_watch.py - runs in a Debian guest that is moved about: does its memory hold, does its clock go on?

    guest_watch.py PORT FOLDER

One process verifies blocks of random bytes and writes new ones into them. One reads every clock again and again: none
may go back. One answers on TCP: "N\\n" with "N REALTIME MONOTONIC\\n" (ns), "set N\\n" sets the clock.
What is wrong becomes a line in FOLDER/trouble; FOLDER/memory.rounds and clock.rounds grow by a line now and
then; FOLDER/stop ends it all.
"""
import hashlib
import os
import random
import socket
import sys
import time

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
BLOCK, BLOCKS, PIECE = 128 << 10, 64, 8 << 10
CLOCKS = {name: getattr(time, name) for name in
          ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME", "CLOCK_REALTIME")}


def say(name, line):
    with open(os.path.join(FOLDER, name), "a", encoding="ascii") as f:
        f.write(line + "\n")


def going():
    return not os.path.exists(os.path.join(FOLDER, "stop"))


def memory():
    blocks = [bytearray(os.urandom(BLOCK)) for _ in range(BLOCKS)]
    sums = [hashlib.sha1(b).digest() for b in blocks]
    while going():
        for i in random.sample(range(BLOCKS), BLOCKS):
            if hashlib.sha1(blocks[i]).digest() != sums[i]:
                say("trouble", f"memory: block {i} is not what was written")
            at = random.randrange(BLOCK - PIECE)
            blocks[i][at:at + PIECE] = os.urandom(PIECE)
            sums[i] = hashlib.sha1(blocks[i]).digest()
            time.sleep(0.02)  # the migration wants some of the processor, too
        say("memory.rounds", "round")


def clock():
    last = {name: 0 for name in CLOCKS}
    while going():
        for _ in range(200):
            for name, number in 5 * list(CLOCKS.items()):
                now = time.clock_gettime_ns(number)
                if now < last[name]:
                    say("trouble", f"{name}: {last[name]}, then {now}")
                last[name] = now
            time.sleep(0.02)
        say("clock.rounds", "round")


def answer(word, value):
    if word == "set":
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + int(value))
    return f"{word} {time.time_ns()} {time.monotonic_ns()}\n".encode()


def serve():
    listener = socket.create_server(("", PORT))
    say("listening", str(PORT))
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            word, _, value = line.decode().strip().partition(" ")
            connection.sendall(answer(word, value))
            if word == "set":
                say("set", "done")


def main():
    for work in (memory, serve):
        if not os.fork():
            work()
            os._exit(0)
    while not os.path.exists(os.path.join(FOLDER, "set")):
        time.sleep(0.1)  # from here nobody sets it
    clock()


main()
