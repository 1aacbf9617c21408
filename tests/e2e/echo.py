"""echo.py - answer the frames of tests/guest/net.c that come over an interface

usage: python3 echo.py INTERFACE
"""
import socket
import sys

s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
s.bind((sys.argv[1], 0x88b5))
print("listening", flush=True)
while True:
    f = s.recv(65536)
    s.send(f[6:12] + bytes.fromhex("020000000001 88b6") + f[14:])
