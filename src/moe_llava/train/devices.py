"""Devices by name: memory, and arithmetic at best."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator: bytes, and dense floating-point operations a second in bf16 and fp32, from its data sheet."""

    name: str
    memory: int
    bf16: float
    fp32: float


def _device(name: str, gigabytes: int, bf16: float, fp32: float) -> Device:
    return Device(name, gigabytes * 10**9, bf16 * 1e12, fp32 * 1e12)


DEVICES = {
    device.name: device
    for device in (
        _device("A10-24GB", 24, 125, 31.2),
        _device("A100-40GB", 40, 312, 19.5),
        _device("A100-80GB", 80, 312, 19.5),
        _device("A6000-48GB", 48, 155, 38.7),
        _device("B200-180GB", 180, 2250, 75),
        _device("H100-80GB", 80, 989, 67),
        _device("H200-141GB", 141, 989, 67),
        _device("L4-24GB", 24, 121, 30.3),
        _device("L40S-48GB", 48, 362, 91.6),
        _device("MI300X-192GB", 192, 1307, 163),
        _device("RTX3090-24GB", 24, 71, 35.6),
        _device("RTX4090-24GB", 24, 165, 82.6),
    )
}


@dataclass(frozen=True)
class Cluster:
    """`hosts` machines with `per_host` devices each."""

    device: Device
    per_host: int
    hosts: int = 1

    @property
    def count(self) -> int:
        return self.per_host * self.hosts

    def __str__(self) -> str:
        hosts = f"{self.hosts}x" if self.hosts > 1 else ""
        return f"{hosts}{self.per_host}x{self.device.name}"


def parse_devices(text: str) -> Cluster:
    """`8xA100-80GB`, `4x8xH100-80GB` (four hosts), or any other device as `8x24GB@100TF`.

    Raises:
        ValueError: none of these forms, or a name that is not known.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x(?:(\d+)GB@(\d+)TF|([A-Za-z]\S*))", text)
    if not match or "0" in (match[1], match[2]):
        raise ValueError(
            f"--devices {text} is not understood: write 8xA100-80GB, 4x8xH100-80GB for four hosts, or 8x24GB@100TF."
        )
    hosts, per_host = int(match[1] or 1), int(match[2])
    if match[3]:
        return Cluster(
            _device(f"{match[3]}GB@{match[4]}TF", int(match[3]), float(match[4]), float(match[4])), per_host, hosts
        )
    named = {name.lower(): device for name, device in DEVICES.items()}
    if match[5].lower() not in named:
        raise ValueError(
            f"--devices: {match[5]} is not known, {', '.join(DEVICES)} are; any other is written as 8x24GB@100TF."
        )
    return Cluster(named[match[5].lower()], per_host, hosts)
