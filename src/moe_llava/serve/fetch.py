"""Images by http(s), from public addresses only."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from moe_llava.serve.images import ImageRefusedError

MAX_REDIRECTS = 3
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet, by itself and by any IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@dataclass(frozen=True)
class Fetcher:
    """Reads images of other servers.

    A name is resolved once, every address it has must be allowed, and the connection goes to that very address: a name
    cannot point elsewhere between check and use. Redirects are followed by the same rules.

    Attributes:
        max_bytes: of a body; reading stops there.
        seconds: for all of it.
    """

    max_bytes: int
    seconds: float = 10.0
    is_allowed: Callable[[Address], bool] = is_public

    async def __call__(self, url: str) -> bytes:
        """The body behind a URL.

        Raises:
            ImageRefusedError: not http(s), not a public address, too slow, too large, or not there.
        """
        try:
            async with (
                asyncio.timeout(self.seconds),
                httpx.AsyncClient(trust_env=False, timeout=self.seconds) as client,
            ):
                for _ in range(MAX_REDIRECTS + 1):
                    body = await self._read(client, httpx.URL(url))
                    if isinstance(body, bytes):
                        return body
                    url = str(body)
        except TimeoutError:
            raise ImageRefusedError(f"The image's server took more than {self.seconds:g} seconds.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            raise ImageRefusedError(f"The image cannot be fetched: {type(error).__name__}.") from None
        raise ImageRefusedError(f"The image's URL redirects more than {MAX_REDIRECTS} times.")

    async def _read(self, client: httpx.AsyncClient, url: httpx.URL) -> bytes | httpx.URL:
        """A body, or where to look instead."""
        address = await self._resolve(url)
        pinned = url.copy_with(host=address)
        headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*"}
        extensions = {"sni_hostname": url.host}
        async with client.stream("GET", pinned, headers=headers, extensions=extensions) as response:
            if response.is_redirect and "location" in response.headers:
                return url.join(response.headers["location"])
            if response.status_code != 200:
                raise ImageRefusedError(f"The image's server answered {response.status_code}.")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > self.max_bytes:
                    raise ImageRefusedError(f"The image behind the URL has more than {self.max_bytes:,} bytes.")
            return bytes(body)

    async def _resolve(self, url: httpx.URL) -> str:
        if url.scheme not in ("http", "https") or not url.host:
            raise ImageRefusedError(
                f"Images are read from data:, http: and https: URLs, not from {url.scheme or '?'}:."
            )
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise ImageRefusedError("The image's URL leads to an address that is not public.")
        return str(addresses[0])
