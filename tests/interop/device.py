#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An IRQ device with native delivery, written from spec/ alone: Python's standard library, and no code of this project.

Usage: device.py SOCKET

Listens at SOCKET for vhost-user front ends, one after another. It has two functions whose vectors are all enabled and whose messages
never change, so it has no events.
"""

import mmap
import os
import select
import socket
import struct
import sys

# Requests, statuses, feature bits, flags of descriptors
LIST_FUNCTIONS, GET_MESSAGES = 1, 2
OK, UNSUPPORTED, INVALID, BUFFER_TOO_SMALL, NO_FUNCTION, NO_VECTOR = range(6)
NATIVE, INDIRECT_DESC, PROTOCOL_FEATURES, VERSION_1 = 1 << 0, 1 << 28, 1 << 30, 1 << 32
OFFERED = NATIVE | INDIRECT_DESC | PROTOCOL_FEATURES | VERSION_1
MQ, REPLY_ACK, CONFIG = 1 << 0, 1 << 3, 1 << 9
NEXT, WRITE, INDIRECT = 1, 2, 4

MAX_VECTORS = 64
SPACE = struct.pack("<IHHIHH", 0x51524956, 1, 0, 0, MAX_VECTORS, 0)
# id, flags, guest address, vendor, device, subsystem vendor and device, class and revision, INTx, MSI, MSI-X
FUNCTIONS = {
    3: (3, 0b1111, 0x30, 0x17CB, 0x1103, 0x17CB, 0x0108, 0x02800001, 1, 32, 0),
    9: (9, 0b1110, 0, 0x8086, 0x10C9, 0x8086, 0x0001, 0x02000001, 1, 1, 10),
}


class Refused(Exception):
    """A message of the front end that cannot be carried out."""


class Invalid(Exception):
    """A chain, or a ring, that no driver may make."""


def answer(request, length, room, features):
    """The reply to a request of that many bytes, with room for that many; the order of checks is the specification's."""
    if length < 8:
        return refusal(INVALID)
    (kind,) = struct.unpack("<H", request[:2])
    if kind != LIST_FUNCTIONS and not (kind == GET_MESSAGES and features & NATIVE):
        return refusal(UNSUPPORTED)
    if length != 16 or any(request[2:8]):
        return refusal(INVALID)
    if kind == LIST_FUNCTIONS:
        return list_functions(request, room)
    return get_messages(request, room)


def refusal(status):
    return struct.pack("<H6x", status)


def list_functions(request, room):
    start, count, reserved = struct.unpack("<HHI", request[8:16])
    if reserved or count == 0:
        return refusal(INVALID)
    if room < 16 + 32 * count:
        return refusal(BUFFER_TOO_SMALL)
    matching = [fields for number, fields in sorted(FUNCTIONS.items()) if number >= start]
    told = matching[:count]
    head = struct.pack("<H6xHH4x", OK, len(told), len(matching) - len(told))
    return head + b"".join(struct.pack("<HHIHHHHIHHH6x", *fields) for fields in told)


def get_messages(request, room):
    function, irq_type, reserved, first, count = struct.unpack("<HBBHH", request[8:16])
    if reserved or count == 0 or irq_type not in (1, 2) or count > MAX_VECTORS:
        return refusal(INVALID)
    if room < 16 + 16 * count:
        return refusal(BUFFER_TOO_SMALL)
    if function not in FUNCTIONS:
        return refusal(NO_FUNCTION)
    if first + count > FUNCTIONS[function][8 + irq_type]:
        return refusal(NO_VECTOR)
    base = 0xFEE00000 + 0x400 * function
    # One address and data that counts up for MSI, a pair of its own for each entry of MSI-X.
    pairs = [(base, n) if irq_type == 1 else (base + 0x20 * n, 0) for n in range(first, first + count)]
    return struct.pack("<H6xH6x", OK, count) + b"".join(struct.pack("<QII", *pair, 1) for pair in pairs)


class Ring:
    """One virtqueue, as the front end set it up."""

    def __init__(self):
        self.size = self.next = self.used = 0
        self.parts = self.kick = self.call = None
        self.enabled = False

    def runs(self):
        return self.enabled and self.kick is not None and self.parts is not None

    def stop(self):
        for eventfd in (self.kick, self.call):
            if eventfd is not None:
                os.close(eventfd)
        self.kick = self.call = self.parts = None


class Session:
    """One front end's time with the device."""

    def __init__(self, peer):
        self.peer = peer
        self.rings = [Ring(), Ring()]
        self.regions = []
        self.features = 0
        self.acknowledges = False

    def run(self):
        while True:
            kicks = {ring.kick: ring for ring in self.rings if ring.runs()}
            ready, _, _ = select.select([self.peer, *kicks], [], [])
            if self.peer in ready and not self.message():
                return
            for kick in ready:
                if kick in kicks and kicks[kick].kick == kick:
                    os.eventfd_read(kick)
            # There is nothing to tell in queue 1.
            if self.rings[0].runs():
                self.work(self.rings[0])

    # Messages

    def message(self):
        """Handles one message; False at the end of the connection."""
        header, descriptors, _, _ = socket.recv_fds(self.peer, 12, 8)
        if len(header) < 12:
            return False
        number, flags, size = struct.unpack("=III", header)
        payload = self.peer.recv(size, socket.MSG_WAITALL) if size else b""
        if len(payload) < size:
            return False
        try:
            reply = self.handle(number, payload, descriptors)
        except (Refused, struct.error):
            self.acknowledge(number, flags, 1)
            return False
        if reply is None:
            self.acknowledge(number, flags, 0)
        else:
            self.reply(number, reply)
        return True

    def acknowledge(self, number, flags, value):
        if self.acknowledges and flags & 8:
            self.reply(number, struct.pack("=Q", value))

    def reply(self, number, payload):
        self.peer.sendall(struct.pack("=III", number, 5, len(payload)) + payload)

    def handle(self, number, payload, descriptors):
        """Returns the payload of the reply, if the message has one."""
        known = {
            1: lambda: struct.pack("=Q", OFFERED),
            2: lambda: self.set_features(*struct.unpack("=Q", payload)),
            3: lambda: None,
            5: lambda: self.set_memory(payload, descriptors),
            8: lambda: self.set_number("size", *struct.unpack("=II", payload)),
            9: lambda: self.set_address(*struct.unpack("=IIQQQQ", payload)),
            10: lambda: self.set_number("next", *struct.unpack("=II", payload)),
            11: lambda: self.get_base(*struct.unpack("=II", payload)),
            12: lambda: self.set_eventfd("kick", payload, descriptors),
            13: lambda: self.set_eventfd("call", payload, descriptors),
            15: lambda: struct.pack("=Q", MQ | REPLY_ACK | CONFIG),
            16: lambda: self.set_protocol_features(*struct.unpack("=Q", payload)),
            17: lambda: struct.pack("=Q", len(self.rings)),
            18: lambda: self.set_number("enabled", *struct.unpack("=II", payload)),
            24: lambda: self.get_config(payload),
            25: lambda: None,
        }
        if number not in known:
            raise Refused(number)
        return known[number]()

    def ring(self, index):
        if index >= len(self.rings):
            raise Refused(index)
        return self.rings[index]

    def set_features(self, features):
        if features & ~OFFERED:
            raise Refused(features)
        self.features = features

    def set_protocol_features(self, features):
        self.acknowledges = bool(features & REPLY_ACK)

    def get_config(self, payload):
        offset, size, _ = struct.unpack("=III", payload[:12])
        return payload[:12] + SPACE.ljust(offset + size, b"\0")[offset : offset + size]

    def set_memory(self, payload, descriptors):
        self.regions = []
        for number, descriptor in enumerate(descriptors):
            guest, size, user, offset = struct.unpack_from("=QQQQ", payload, 8 + 32 * number)
            if os.fstat(descriptor).st_size < offset + size:
                raise Refused("the file is shorter than the region")
            self.regions.append((guest, size, user, offset, mmap.mmap(descriptor, offset + size)))
            os.close(descriptor)

    def set_number(self, field, index, value):
        setattr(self.ring(index), field, value)

    def set_eventfd(self, field, payload, descriptors):
        (index,) = struct.unpack("=Q", payload)
        setattr(self.ring(index & 0xFF), field, descriptors[0] if descriptors else None)

    def set_address(self, index, _flags, table, used, available, _log):
        ring = self.ring(index)
        try:
            ring.parts = [self.guest_address(part) for part in (table, available, used)]
            (ring.used,) = struct.unpack("<H", self.read(ring.parts[2] + 2, 2))
        except Invalid:
            ring.parts = None

    def get_base(self, index, _value):
        ring = self.ring(index)
        ring.stop()
        return struct.pack("=II", index, ring.next)

    # Memory

    def guest_address(self, user_address):
        for guest, size, user, _, _ in self.regions:
            if user <= user_address < user + size:
                return guest + user_address - user
        raise Invalid("an address of the front end in no region")

    def place(self, address, length):
        for guest, size, _, offset, mapping in self.regions:
            if guest <= address and address + length <= guest + size:
                start = address - guest + offset
                return mapping, slice(start, start + length)
        raise Invalid("a guest address in no region")

    def read(self, address, length):
        mapping, part = self.place(address, length)
        return mapping[part]

    def write(self, address, data):
        mapping, part = self.place(address, len(data))
        mapping[part] = data

    # Rings

    def work(self, ring):
        """Answers what is available. A ring that breaks the rules is left alone until it is set up again."""
        try:
            while self.work_one(ring):
                pass
        except Invalid:
            ring.parts = None

    def work_one(self, ring):
        _, available, used = ring.parts
        (index,) = struct.unpack("<H", self.read(available + 2, 2))
        ahead = (index - ring.next) % 0x10000
        if ahead == 0:
            return False
        (head,) = struct.unpack("<H", self.read(available + 4 + 2 * (ring.next % ring.size), 2))
        if ahead > ring.size or head >= ring.size:
            raise Invalid("an available ring that is ahead of itself")
        ring.next = (ring.next + 1) % 0x10000
        length = self.serve(ring, head)
        self.write(used + 4 + 8 * (ring.used % ring.size), struct.pack("<II", head, length))
        ring.used = (ring.used + 1) % 0x10000
        self.write(used + 2, struct.pack("<H", ring.used))
        if ring.call is not None:
            os.eventfd_write(ring.call, 1)
        return True

    def serve(self, ring, head):
        """Answers one chain, and returns its used length."""
        try:
            readable, writable = self.chain(ring, head)
        except Invalid:
            return 0
        room = sum(length for _, length in writable)
        if room < 8:
            return 0
        request = b""
        for address, length in readable:
            # One byte more than the longest request tells that there is one.
            request += self.read(address, min(length, 25 - len(request)))
        reply = answer(request, sum(length for _, length in readable), room, self.features)
        rest = reply
        for address, length in writable:
            self.write(address, rest[:length])
            rest = rest[length:]
        return len(reply)

    def chain(self, ring, head):
        """The readable and the writable pieces of a chain."""
        pieces = ([], [])
        table, index, size, indirect = ring.parts[0], head, ring.size, False
        for _ in range(ring.size):
            address, length, flags, following = self.descriptor(table, index, size)
            if flags & INDIRECT and not indirect:
                self.place(address, length)
                if length == 0 or length % 16:
                    raise Invalid("an indirect table that is none")
                table, size, indirect = address, length // 16, True
                address, length, flags, following = self.descriptor(table, 0, size)
            if flags & INDIRECT or (pieces[1] and not flags & WRITE):
                raise Invalid("a table in a table, or a readable piece behind a writable one")
            if length:
                self.place(address, length)
            pieces[1 if flags & WRITE else 0].append((address, length))
            if not flags & NEXT:
                return pieces
            index = following
        raise Invalid("more descriptors than the ring has")

    def descriptor(self, table, index, size):
        if index >= size:
            raise Invalid("a descriptor that is not there")
        return struct.unpack("<QIHH", self.read(table + 16 * index, 16))


def main():
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    listener.listen()
    print("listening", flush=True)
    while True:
        peer, _ = listener.accept()
        session = Session(peer)
        try:
            session.run()
        except ConnectionError:
            pass
        for ring in session.rings:
            ring.stop()
        peer.close()


if __name__ == "__main__":
    main()
