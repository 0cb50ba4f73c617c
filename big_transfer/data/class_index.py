"""Where the images of a dataset of tars or folders, one a class, lie: built once, then cached.

ImageNet-21k has 14 million images in 21 thousand tars. To read any of them takes its tar, the
offset and the size, which only the headers in the tars say. Reading them takes 30 µs of CPU an
image, 7 minutes for all, besides what the disk needs to get to each. So they are kept as columns of
an Arrow file that is mapped into memory: 50 bytes an image, shared by all processes.

The file is $XDG_CACHE_HOME/big_transfer/class_index-*.arrow (~/.cache by default), one a dataset
folder; it may be deleted at any time. A class in it is trusted as long as its tar's size and time
of change are the same, or its folder's time of change. (A file that is overwritten in place, inside
a folder, goes unnoticed; one that is replaced, added or removed doesn't.)
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence

import numpy as np

from big_transfer.data.files import SUFFIXES, hash_of

VERSION = 1  # of the cache's columns


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a class is.

  Attributes:
    name: of the class.
    path: of its tar or folder.
    is_tar: which of both.
    stamp: what changes when it does: kind, size in bytes, time in ns.
  """
  name: str
  path: str
  is_tar: bool
  stamp: tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Entry:
  """The part of an index that is of one class: rows `start` to `start + count`.

  Attributes:
    stamp: the `Place.stamp` it was read at.
    start: first row.
    count: number of images.
    digest: sha256 of the images' names and sizes.
  """
  stamp: tuple[str, int, int]
  start: int
  count: int
  digest: str


@dataclasses.dataclass(frozen=True)
class Index:
  """Columns over N images, class by class, in a class by the bytes of the names.

  Attributes:
    entries: class name -> its rows.
    offset: int64 (N,), where the image begins in its tar; 0 in a folder.
    size: int64 (N,), bytes.
    side: uint64 (N,), `files.hash_of` "CLASS/NAME".
    name: N names inside the class, a pyarrow LargeBinaryArray.
  """
  entries: dict[str, Entry]
  offset: np.ndarray
  size: np.ndarray
  side: np.ndarray
  name: Sequence


def read(root: pathlib.Path, places: Iterable[Place], threads: int = 16) -> Index:
  """The index of these classes: from the cache where they haven't changed, else from their headers.

  What had to be read is cached, even if some of it is broken or this process is interrupted; from
  two processes at once the last one's file stays, and both are right.

  Args:
    root: the dataset's folder; there is one cache file for each.
    places: the classes wanted.
    threads: how many tars or folders are read at once; disks far away like more.

  Returns:
    An index that has all of `places`, and maybe others.

  Raises:
    ValueError: tars or folders that are broken or hold no image, ten of them named.
  """
  places = list(places)
  file = cache_folder() / f"class_index-{VERSION}-{_key(root)}.arrow"
  index = _load(file)
  old = [place for place in places
         if place.name not in index.entries or index.entries[place.name].stamp != place.stamp]
  if not old:
    return index
  found: dict[str, _Found] = {}
  broken: list[str] = []
  try:
    _scan_all(root, old, threads, found, broken)
  finally:
    if found:
      index = _merged(index, found)
      _store(index, file)
  if broken:
    more = f", and {len(broken) - 10} more" if len(broken) > 10 else ""
    raise ValueError(
        f"{len(broken)} of the {len(places)} classes in {str(root)!r} can't be used: "
        f"{'; '.join(broken[:10])}{more}. Get them again, or leave them out with the option "
        "classes, a file of those to use.")
  return index


def cache_folder() -> pathlib.Path:
  """Where this project caches: $XDG_CACHE_HOME/big_transfer, else ~/.cache/big_transfer."""
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "big_transfer"


@dataclasses.dataclass(frozen=True)
class _Found:
  """One class as it was found, columns as in `Index`."""
  stamp: tuple[str, int, int]
  digest: str
  offset: np.ndarray
  size: np.ndarray
  side: np.ndarray
  name: Sequence


def _scan_all(root, places, threads, found, broken):
  """Fills `found`, by class, and `broken`, with a sentence for each; tells progress on stderr."""
  pool = concurrent.futures.ThreadPoolExecutor(threads, "index")
  began = told = time.monotonic()
  images = 0
  try:
    for place, result in zip(places, pool.map(_scan, places)):
      if isinstance(result, str):
        broken.append(result)
      else:
        found[place.name] = result
        images += len(result.size)
      if time.monotonic() - told > 5:
        told = time.monotonic()
        print(f"indexing {root}: {len(found) + len(broken):,} of {len(places):,} classes, "
              f"{images:,} images, {told - began:.0f} s", file=sys.stderr, flush=True)
  finally:
    pool.shutdown(cancel_futures=True)  # else Ctrl-C waits for every class


def _scan(place: Place) -> _Found | str:
  """Names, offsets and sizes of a class's images; a sentence if it can't be used."""
  import pyarrow as pa
  try:
    rows = sorted(_in_tar(place) if place.is_tar else _in_folder(place))
  except (ValueError, OSError, tarfile.TarError) as error:
    return f"{place.path}: {error}"
  if not rows:
    return f"{place.path}: no images (suffixes {', '.join(sorted(SUFFIXES))})"
  names, offsets, sizes = zip(*rows)
  twice = next((a for a, b in zip(names, names[1:]) if a == b), None)
  if twice:
    return f"{place.path}: {os.fsdecode(twice)!r} is in it twice; pack it again"
  digest = hashlib.sha256()
  for name, size in zip(names, sizes):
    digest.update(b"%s\0%d\n" % (name, size))
  inside = os.fsencode(place.name) + b"/"
  return _Found(place.stamp, digest.hexdigest(), np.array(offsets, np.int64),
                np.array(sizes, np.int64),
                np.array([hash_of(inside + name) for name in names], np.uint64),
                pa.array(names, pa.large_binary()))


def _in_tar(place: Place) -> Iterable[tuple[bytes, int, int]]:
  """Name, offset and size of each image in a tar, of which only headers are read."""
  with open(place.path, "rb", buffering=0) as stream:
    try:
      with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
          tar.members.clear()  # tarfile keeps them all
          name = member.name.removeprefix("./").removeprefix(f"{place.name}/")
          if not _is_image(name) or member.isdir():
            continue
          if not member.isfile():
            raise ValueError(f"{member.name!r} in it is a link, without the image; pack it again "
                             "with --dereference --hard-dereference")
          yield os.fsencode(name), member.offset_data, member.size
        end = tar.offset
    except tarfile.TarError as error:
      raise ValueError(f"truncated, or no uncompressed tar ({error})") from error
    stream.seek(end)
    # tarfile takes a damaged header for the end, and so does a copy that stopped between images.
    if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
      raise ValueError(f"truncated or damaged: no end-of-archive block at byte {end}")


def _in_folder(place: Place) -> Iterable[tuple[bytes, int, int]]:
  with os.scandir(place.path) as entries:
    for entry in entries:
      if entry.name.startswith("."):
        continue
      if entry.is_dir():
        raise ValueError(f"holds a folder, {entry.name!r}; expected images (if its folders are the "
                         f"classes, name it as the path; deeper trees are read by folder:PATH)")
      if _is_image(entry.name):
        yield os.fsencode(entry.name), 0, entry.stat().st_size
      elif entry.name.endswith(".tar"):
        raise ValueError(f"holds a tar, {entry.name!r}; expected images (if its tars are the "
                         "classes, name it as the path)")


def _is_image(name: str) -> bool:
  base = name.rpartition("/")[2]
  return not base.startswith(".") and os.path.splitext(base)[1].lower() in SUFFIXES


def _merged(index: Index, found: dict[str, _Found]) -> Index:
  """Classes found replace those of the index."""
  import pyarrow as pa
  kept = {name: entry for name, entry in index.entries.items() if name not in found}
  parts, entries, start = [], {}, 0
  for name, entry in kept.items():
    rows = slice(entry.start, entry.start + entry.count)
    parts.append([index.offset[rows], index.size[rows], index.side[rows], index.name[rows]])
    entries[name] = dataclasses.replace(entry, start=start)
    start += entry.count
  for name, new in found.items():
    parts.append([new.offset, new.size, new.side, new.name])
    entries[name] = Entry(new.stamp, start, len(new.size), new.digest)
    start += len(new.size)
  *numbers, names = zip(*parts)
  return Index(entries, *map(np.concatenate, numbers), pa.concat_arrays(names))


def _store(index: Index, file: pathlib.Path):
  """Writes the cache, whole or not at all; one that can't be written is told and done without."""
  import pyarrow as pa
  entries = {name: dataclasses.astuple(entry) for name, entry in index.entries.items()}
  batch = pa.record_batch(
      {"offset": index.offset, "size": index.size, "side": index.side, "name": index.name},
      metadata={"entries": json.dumps(entries)})
  partial = None
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f".{file.stem}-*"):  # by a process that was killed meanwhile
      if time.time() - left.stat().st_mtime > 3600:
        left.unlink(missing_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    with os.fdopen(handle, "wb") as stream:
      with pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(partial, file)
  except OSError as error:
    if partial:
      pathlib.Path(partial).unlink(missing_ok=True)
    print(f"the index can't be kept in {str(file.parent)!r} ({error}), so it will be built again "
          "next time; set XDG_CACHE_HOME to a folder that can be written to", file=sys.stderr)


def _load(file: pathlib.Path) -> Index:
  """The cache's index; an empty one if there is none, or none that can be read."""
  import pyarrow as pa
  try:
    with pa.memory_map(str(file)) as mapped:
      batch = pa.ipc.open_file(mapped).get_batch(0)
    entries = {name: Entry(tuple(stamp), *others) for name, (stamp, *others)
               in json.loads(batch.schema.metadata[b"entries"]).items()}
    numbers = [batch.column(name).to_numpy() for name in ("offset", "size", "side")]
    return Index(entries, *numbers, batch.column("name"))
  except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
    empty = np.zeros(0, np.int64)
    return Index({}, empty, empty, empty.astype(np.uint64), pa.array([], pa.large_binary()))


def _key(root: pathlib.Path) -> str:
  return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
