#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A front end and driver of the IRQ device, written from spec/ alone: Python's standard library, and no code of this project.

Usage: first_contact.py SOCKET

Prints what goes over the socket and lies in the rings, byte by byte; this is the session in spec/annex-vhost-user.md. After it has
sources it waits for an interrupt of the second one, which somebody has to raise.
"""

import mmap
import os
import select
import socket
import struct
import sys

MEMORY, SIZE, ENTRIES = 0x100000, 0x10000, 4
QUEUES = [
    # descriptor table, available ring, used ring
    (0x100000, 0x100040, 0x100080),
    (0x100100, 0x100140, 0x100180),
]
REQUEST, REPLY, EVENTS = 0x101000, 0x102000, 0x103000
PROTOCOL_FEATURES, VERSION_1, EVENT, NATIVE = 1 << 30, 1 << 32, 1 << 1, 1 << 0
CONFIG = 1 << 9
ROOM = 512


def show(what, data=b""):
    """One line of the session: what it is, and its bytes, 4 in a group and 8 groups in a line."""
    words = [data[at : at + 4].hex() for at in range(0, len(data), 4)]
    lines = [" ".join(words[at : at + 8]) for at in range(0, len(words), 8)] or [""]
    for number, line in enumerate(lines):
        print(f"{what if number == 0 else '':<28}{line}".rstrip(), flush=True)


class FrontEnd:
    """The socket, and one region of memory that both sides see."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.file = os.memfd_create("guest memory")
        os.ftruncate(self.file, SIZE)
        self.memory = mmap.mmap(self.file, SIZE)

    def write(self, address, data):
        self.memory[address - MEMORY : address - MEMORY + len(data)] = data

    def read(self, address, length):
        return self.memory[address - MEMORY : address - MEMORY + length]

    def tell(self, name, number, payload=b"", fds=()):
        message = struct.pack("=III", number, 1, len(payload)) + payload
        show(f"-> {name}", message)
        socket.send_fds(self.socket, [message], fds)

    def ask(self, name, number, payload=b""):
        self.tell(name, number, payload)
        header = self.receive(12)
        replied, flags, size = struct.unpack("=III", header)
        assert (replied, flags) == (number, 5), header
        answer = self.receive(size)
        show("<-", header + answer)
        return answer

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            assert part, "the back end closed the connection"
            data += part
        return data

    def ask_bits(self, name, number):
        return struct.unpack("=Q", self.ask(name, number))[0]

    def connect(self):
        """Up to where a driver can begin. Returns the configuration space and the features that are taken."""
        offered = self.ask_bits("GET_FEATURES", 1)
        assert offered & PROTOCOL_FEATURES and offered & VERSION_1
        assert self.ask_bits("GET_PROTOCOL_FEATURES", 15) & CONFIG
        self.tell("SET_PROTOCOL_FEATURES", 16, struct.pack("=Q", CONFIG))
        self.tell("SET_OWNER", 3)
        config = self.ask("GET_CONFIG", 24, struct.pack("=III16x", 0, 16, 0))[12:]
        magic, version = struct.unpack("<IH", config[:6])
        assert (magic, version) == (0x51524956, 1), "this is no IRQ device"
        return config, offered & (PROTOCOL_FEATURES | VERSION_1 | EVENT | NATIVE)

    def share(self):
        region = struct.pack("=QQQQ", MEMORY, SIZE, MEMORY, 0)
        self.tell("SET_MEM_TABLE", 5, struct.pack("=II", 1, 0) + region, [self.file])

    def start(self, features):
        """Starts both queues from the beginning."""
        self.tell("SET_FEATURES", 2, struct.pack("=Q", features))
        self.share()
        for index, (table, available, used) in enumerate(QUEUES):
            self.write(table, bytes(0x100))
            self.tell("SET_VRING_NUM", 8, struct.pack("=II", index, ENTRIES))
            self.tell("SET_VRING_BASE", 10, struct.pack("=II", index, 0))
            self.tell("SET_VRING_ADDR", 9, struct.pack("=IIQQQQ", index, 0, table, used, available, 0))
        queues = [Queue(self, index) for index in range(2)]
        for queue in queues:
            self.tell("SET_VRING_KICK", 12, struct.pack("=Q", queue.index), [queue.kick])
            self.tell("SET_VRING_CALL", 13, struct.pack("=Q", queue.index), [queue.call])
        for index in range(2):
            self.tell("SET_VRING_ENABLE", 18, struct.pack("=II", index, 1))
        return queues

    def stop(self):
        for index in range(2):
            self.tell("SET_VRING_ENABLE", 18, struct.pack("=II", index, 0))
        for index in range(2):
            self.ask("GET_VRING_BASE", 11, struct.pack("=II", index, 0))


class Queue:
    """The driver's side of a split virtqueue."""

    def __init__(self, front_end, index):
        self.front_end, self.index = front_end, index
        self.table, self.available, self.used = QUEUES[index]
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.made_available = self.seen = 0

    def publish(self, *descriptors):
        """Makes one chain for each list of descriptors available, and notifies the device."""
        at = 0
        for chain in descriptors:
            self.front_end.write(
                self.available + 4 + 2 * (self.made_available % ENTRIES), struct.pack("<H", at)
            )
            for number, (address, length, flags) in enumerate(chain):
                more = number + 1 < len(chain)
                descriptor = struct.pack("<QIHH", address, length, flags | more, at + 1 if more else 0)
                self.front_end.write(self.table + 16 * at, descriptor)
                show(f"   queue {self.index} descriptor {at}", descriptor)
                at += 1
            self.made_available = (self.made_available + 1) % 0x10000
        self.front_end.write(self.available + 2, struct.pack("<H", self.made_available))
        show(f"   queue {self.index} available", self.front_end.read(self.available, 4 + 2 * ENTRIES))
        os.eventfd_write(self.kick, 1)

    def wait(self):
        """The first descriptor of the next chain that comes back, and its used length."""
        while True:
            # One chain at a time is waited for, so each has a call. Before that the device can be at work on the ring.
            select.select([self.call], [], [])
            os.eventfd_read(self.call)
            if struct.unpack("<H", self.front_end.read(self.used + 2, 2))[0] != self.seen:
                break
        show(f"   queue {self.index} used", self.front_end.read(self.used, 4 + 8 * ENTRIES))
        at = self.used + 4 + 8 * (self.seen % ENTRIES)
        self.seen = (self.seen + 1) % 0x10000
        return struct.unpack("<II", self.front_end.read(at, 8))

    def request(self, name, data):
        """Sends one request, and returns the status and the bytes of the reply."""
        self.front_end.write(REQUEST, data)
        show(f"   {name}", data)
        self.publish([(REQUEST, len(data), 0), (REPLY, ROOM, 2)])
        _, length = self.wait()
        reply = self.front_end.read(REPLY, min(length, ROOM))
        show("   reply", reply)
        return struct.unpack("<H", reply[:2])[0], reply


def say(text):
    print(f"\n{text}\n", flush=True)


def listed(requestq, start, most):
    status, reply = requestq.request("LIST_FUNCTIONS", struct.pack("<H6xHH4x", 1, start, most))
    assert status == 0, status
    count = struct.unpack("<H", reply[8:10])[0]
    return [struct.unpack("<HHIHHHHIHHH6x", reply[16 + 32 * n : 48 + 32 * n]) for n in range(count)]


def main():
    front_end = FrontEnd(sys.argv[1])
    say("1. Is this the device?")
    config, features = front_end.connect()
    max_sources = struct.unpack("<I", config[8:12])[0]
    assert max_sources > 1, "the device has no event delivery"
    say("2. Memory and queues")
    requestq, eventq = front_end.start(features)

    say("3. Which functions are there?")
    functions = listed(requestq, 0, 4)
    wifi = next(f for f in functions if f[3] == 0x17CB)
    ethernet = next(f for f in functions if f[3] == 0x8086)
    assert wifi[9] == 32 and ethernet[10] == 10

    say("4. Native delivery: the messages of MSI vectors 3 and 4 of the first function")
    status, reply = requestq.request("GET_MESSAGES", struct.pack("<H6xHBxHH", 2, wifi[0], 1, 3, 2))
    assert (status, len(reply)) == (0, 48)
    first, second = [struct.unpack("<QII", reply[at : at + 16]) for at in (16, 32)]
    assert first[0] == second[0] and first[1] + 1 == second[1]

    say("5. A request that is wrong: a count of 0")
    status, reply = requestq.request("GET_MESSAGES", struct.pack("<H6xHBxHH", 2, wifi[0], 1, 3, 0))
    assert (status, len(reply)) == (2, 8)

    say("6. Event delivery: two buffers for events, then one or two sources of MSI-X of the second function")
    eventq.publish([(EVENTS, 32, 2)], [(EVENTS + 32, 32, 2)])
    allocate = struct.pack("<H6xHBBHHHB5x", 16, ethernet[0], 2, 0, 1, 2, 0, 1)
    status, reply = requestq.request("ALLOCATE", allocate)
    assert (status, len(reply)) == (0, 64)
    sources = [struct.unpack("<IH2xQII", reply[at : at + 24]) for at in (16, 40)]
    assert [source[1] for source in sources] == [0, 1]

    say("7. The function writes the second message")
    head, length = eventq.wait()
    events = front_end.read(EVENTS + 32 * head, length)
    show("   events", events)
    kind, function, source = struct.unpack("<HHI", events[:8])
    assert (length, kind, function, source) == (16, 1, ethernet[0], sources[1][0])

    say("8. The sources are given back, and are not there a second time")
    free = struct.pack("<H6xIH2x", 17, sources[0][0], 2)
    status, reply = requestq.request("FREE", free)
    assert (status, len(reply)) == (0, 8)
    status, reply = requestq.request("FREE", free)
    assert (status, len(reply)) == (10, 8)

    say("9. A device reset, and another driver")
    front_end.stop()
    requestq, _ = front_end.start(features)
    assert len(listed(requestq, 0, 1)) == 1


if __name__ == "__main__":
    main()
