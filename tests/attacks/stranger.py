"""A stranger at a node's port, as hostile as it likes: raw sockets, its own key, nothing of the product's manners."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

from swarm.base.address import Address
from swarm.net.channel.handshake import MAGIC, PREAMBLE, VERSION, ChannelKeys, Handshake
from swarm.net.channel.lanes import FIRST_HEAD, MORE_HEAD, WHOLE_HEAD, Chunk
from swarm.net.channel.message import Envelope, Message, Mode, pack_header
from swarm.net.channel.record import Opener, Sealer
from swarm.net.identity import Identity

HELLO_BYTES = PREAMBLE.pack(MAGIC, VERSION)


def resident(pid: int) -> int:
    """Bytes of memory that a process has resident."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """Files and sockets that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Stranger:
    """One connection. `web`: through the WebSocket that nodes offer to those who can speak nothing but HTTP."""

    def __init__(self, number: int, web: bool = False) -> None:
        self.web = web
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.bind((f"127.0.{1 + number // 200 % 200}.{1 + number % 200}", 0))  # everybody from a host of its own
        self._got = b""

    async def connect(self, address: Address) -> None:
        await asyncio.get_running_loop().sock_connect(self.sock, address)
        if self.web:
            head = "GET /swarm/door HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            await self.raw(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
            while not (await self._take(1)).endswith(b"\n") or self._last != b"\r\n\r\n":
                pass

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, data: bytes) -> None:
        await (self.fragment(0x82, data) if self.web else self.raw(data))  # one whole binary message

    async def fragment(self, first: int, data: bytes) -> None:
        """A WebSocket frame, masked with zeros; `first`: its first byte, final bit and kind."""
        size = struct.pack(">BH", 0xFE, len(data)) if len(data) > 125 else bytes((0x80 | len(data),))
        await self.raw(bytes((first,)) + size + bytes(4) + data)

    async def read(self, count: int) -> bytes:
        """`count` bytes of what the node says inside of the tunnel, if there is one."""
        while self.web and len(self._got) < count:
            size = (await self._take(2))[1]
            if size == 126:
                size = int.from_bytes(await self._take(2), "big")
            self._got += await self._take(size)
        if not self.web:
            return await self._take(count)
        data, self._got = self._got[:count], self._got[count:]
        return data

    async def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
            if not piece:
                raise ConnectionError("closed")
            data += piece
        self._last = (getattr(self, "_last", b"") + data)[-4:]
        return data

    async def begin(self) -> Handshake:
        """As far as anyone gets without keys: the node waits for the last message of the handshake."""
        self.identity = Identity.generate()
        shake = Handshake(ChannelKeys.make(self.identity, 1 << 26), initiator=True)
        await self.send(HELLO_BYTES + shake.write())
        await self.read(PREAMBLE.size)
        shake.read_untrusted(await self.read(204))
        return shake

    async def authenticate(self) -> None:
        """Prove a key that nobody knows."""
        shake = await self.begin()
        await self.send(shake.write())
        assert shake.established is not None
        self.sealer, self.opener = Sealer(shake.established.send_key), Opener(shake.established.receive_key)

    async def record(self, *plaintext: bytes) -> None:
        sealed = self.sealer.seal(b"".join(plaintext))
        await self.send(len(sealed).to_bytes(2, "big") + sealed)

    async def call(self, message: Message, number: int = 1) -> None:
        """Ask, and do not wait for the answer."""
        header = pack_header(Envelope(message, Mode.CALL, number))
        await self.record(WHOLE_HEAD.pack(Chunk.WHOLE, len(header)), header, message.body)

    async def fill_lanes(self, total: int) -> None:
        """Begin a message on every lane and feed them all, `total` bytes together, ending none."""
        for lane in range(32):
            await self.record(FIRST_HEAD.pack(Chunk.FIRST, lane, 200, 4 << 20), b"x")
        piece, sent = bytes(16 * 1024), 0
        while sent < total:
            await self.record(MORE_HEAD.pack(Chunk.MORE, sent // len(piece) % 32), piece)
            sent += len(piece)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()
