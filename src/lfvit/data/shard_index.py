"""Where the images of tar shards lie: read from the headers once, then kept in a file.

Shards follow WebDataset's naming: members that follow each other and are named alike up to the
first dot of their file names are one sample.
"""

import hashlib
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from rich.progress import track

from lfvit.data.images import EXTENSIONS
from lfvit.errors import DataError

log = logging.getLogger(__name__)

VERSION = 1
BLOCK = tarfile.BLOCKSIZE
THREADS = 8  # a header is a small read far from the last one: waiting is most of it


class Index(NamedTuple):
    """n samples, in the order of the shards and within them.

    names: (n,) bytes, of the image members. labels: (n,) bytes, as written. shards: (n,) which one.
    offsets, sizes: (n,) of the image's bytes in its shard. ignored: (k, 2) text, what else the
    shards hold and how much of it.
    """

    names: np.ndarray
    labels: np.ndarray
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    ignored: np.ndarray


def index_shards(paths: list[Path], label: str) -> Index:
    """The index of these shards, from the user's cache folder or else from their headers.

    Args:
        paths: of uncompressed tar files.
        label: see `lfvit.data.shards.open_shards`.

    Raises:
        DataError: a shard that is missing, truncated, damaged or compressed, naming it and the
            place; a sample without a label.
    """
    file = _cache_file(paths, label)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # one process reads, the others wait for it
            found = _load(file)
            if found is None:
                found = _scan_all(paths, label)
                _save(found, file)
    except (OSError, NotImplementedError) as error:
        log.warning("the index of the shards cannot be kept in %s (%s)", file.parent, error)
        found = _scan_all(paths, label)
    for kind, count in found.ignored:
        log.warning("%s ... (%d shards): %s %s ignored", paths[0], len(paths), count, kind)
    return found


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/lfvit, or ~/.cache/lfvit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfvit"


def _cache_file(paths: list[Path], label: str) -> Path:
    """Another one as soon as a shard changes."""
    about = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: not readable ({error.strerror})") from error
        about.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    key = hashlib.sha256(json.dumps([VERSION, label, about]).encode()).hexdigest()
    return cache_folder() / "shards" / f"{key[:32]}.npz"


def _load(file: Path) -> Index | None:
    try:
        with np.load(file, allow_pickle=False) as content:
            return Index(**{name: content[name] for name in Index._fields})
    except Exception:  # none yet, or one that was cut short: it is made anew
        return None


def _save(index: Index, file: Path) -> None:
    part = file.with_suffix(".part.npz")
    np.savez(part, **index._asdict())
    os.replace(part, file)


def _scan_all(paths: list[Path], label: str) -> Index:
    ignored: Counter[str] = Counter()
    columns: list[tuple[np.ndarray, ...]] = []
    pool = ThreadPoolExecutor(THREADS)
    try:
        found = pool.map(lambda path: scan(path, label), paths)
        title = f"indexing {len(paths)} shards"
        for number, (samples, others) in enumerate(track(found, title, total=len(paths))):
            ignored.update(others)
            if samples:
                names, labels, offsets, sizes = map(np.array, zip(*samples, strict=True))
                columns.append((names, labels, np.full(len(names), number), offsets, sizes))
    finally:
        pool.shutdown(cancel_futures=True)
    if not columns:
        raise DataError(f"{paths[0]} ... ({len(paths)} shards): hold no images")
    kinds = [(kind, str(count)) for kind, count in sorted(ignored.items())]
    names, labels, numbers, offsets, sizes = map(np.concatenate, zip(*columns, strict=True))
    return Index(names, labels, numbers, offsets, sizes, np.array(kinds, str))


def scan(path: Path, label: str) -> tuple[list[tuple[bytes, bytes, int, int]], Counter[str]]:
    """The samples of a shard: name, label, offset and size; and what else it holds.

    Raises:
        DataError: naming the shard, and the place in it.
    """
    samples: list[tuple[bytes, bytes, int, int]] = []
    ignored: Counter[str] = Counter()
    key, parts = "", dict[str, tarfile.TarInfo]()
    with path.open("rb") as file:
        tar = _open(file, path)
        for member in _members(tar, path):
            named = split_name(member.name)
            if not member.isreg() or member.issparse() or named is None:
                ignored["links, devices and hidden files"] += not member.isdir()
                continue
            if named[0] != key:
                _finish(samples, ignored, file, path, parts, label)
                key, parts = named[0], {}
            if named[1] in parts:
                raise DataError(f"{path}: {key}.{named[1]} is there twice, at {member.offset_data}")
            parts[named[1]] = member
        _check_end(file, tar.offset, path)  # first: of a sample cut in two, the rest is missing
        _finish(samples, ignored, file, path, parts, label)
    return samples, +ignored


def split_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member, as in WebDataset; None for hidden files and those without one.

    photos/a.seg.PNG has the key photos/a and the suffix seg.png.
    """
    file = PurePosixPath(name).name
    stem, dot, suffix = file.partition(".")
    if not stem or not dot:
        return None
    return name[: len(name) - len(file)] + stem, suffix.lower()


def _open(file: BinaryIO, path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        file.seek(0)
        start = file.read(4)
        packed = start[:2] in (b"\x1f\x8b", b"BZ") or start == b"\xfd7zX" or start == b"(\xb5/\xfd"
        why = "compressed; unpack it (images gain nothing by it)" if packed else f"({error})"
        raise DataError(f"{path}: not a plain tar file {why}") from error


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{path}: truncated or damaged at byte {tar.offset} ({error}); fetch it again"
        ) from error


def _finish(
    samples: list[tuple[bytes, bytes, int, int]],
    ignored: Counter[str],
    file: BinaryIO,
    path: Path,
    parts: dict[str, tarfile.TarInfo],
    label: str,
) -> None:
    """Add the sample that these members are, if they are one."""
    images = [member for suffix, member in parts.items() if f".{suffix}" in EXTENSIONS]
    if not images:
        ignored["samples without an image"] += bool(parts)
        return
    if len(images) > 1:
        names = " and ".join(member.name for member in images)
        raise DataError(f"{path}: a sample with two images, {names}")
    image = images[0]
    suffix, _, field = label.partition(":")
    if suffix not in parts:
        raise DataError(
            f"{path}: {image.name} has no .{suffix} beside it (only .{', .'.join(parts)}); "
            "data.label says where the class is: a suffix, or json:FIELD"
        )
    file.seek(parts[suffix].offset_data)
    text = file.read(parts[suffix].size)
    try:
        value = json.loads(text)[field] if field else text.decode().strip()
        if value is None or not (found := str(value)):
            raise ValueError("it is empty")
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: {parts[suffix].name} holds no label data.label={label} "
            f"({type(error).__name__}: {error})"
        ) from error
    name = image.name.encode("utf-8", "surrogateescape")
    samples.append((name, found.encode(), image.offset_data, image.size))


def _check_end(file: BinaryIO, end: int, path: Path) -> None:
    """A tar file ends with zeros; anything else after its last member means that some are missing.

    Python's tarfile stops without a word at a header it cannot read.
    """
    file.seek(end)
    if len(file.read(BLOCK)) < BLOCK:
        raise DataError(f"{path}: truncated at byte {end}, before its end mark; fetch it again")
    file.seek(end)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            at = end + len(block) - len(block.lstrip(b"\0"))
            raise DataError(
                f"{path}: damaged at byte {at}: neither a member nor the end; a shard made of "
                "several tar files joined together has to be taken apart"
            )
        end += len(block)
