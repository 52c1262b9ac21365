"""A process that serves: uvicorn, with an end that loses nobody."""

import asyncio
import ipaddress
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from moe_llava.serve.scheduler import Scheduler

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(uvicorn.Server):
    """On SIGTERM or Ctrl-C new requests get 503 and those taken are finished. A second signal ends it with status 1."""

    def __init__(self, app: FastAPI, scheduler: Scheduler, *, host: str, port: int) -> None:
        super().__init__(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2))
        self._scheduler = scheduler

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._scheduler.closing:
            os._exit(1)
        self._scheduler.refuse()
        # Not the signal itself: uvicorn would raise it again at the end, and the exit status would say "killed".
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        while not self._scheduler.idle:
            await asyncio.sleep(0.05)
        # What was answered is still on its way to its reader; streams that never end (the page's) are cut.
        await super().shutdown(sockets)


def serve(app: FastAPI, scheduler: Scheduler, *, host: str, port: int) -> None:
    """Serve until a signal.

    Raises:
        ValueError: nothing can listen there.
    """
    try:
        with socket.create_server((host, port), family=_family(host)):
            pass
    except OSError as error:
        raise ValueError(f"Cannot listen on {host} port {port}: {error.strerror}. Choose another --port.") from error
    server = Server(app, scheduler, host=host, port=port)
    server.run()
    scheduler.close(timeout=5)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
