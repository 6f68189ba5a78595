"""Files fetched once and kept: checked by their hash, archives unpacked in their folder alone."""

import hashlib
import shutil
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from khub import config
from khub.saving.files import check_size, swap


def get_file(
    fname=None, origin=None, untar=False, md5_hash=None, file_hash=None, cache_subdir="datasets",
    hash_algorithm="auto", extract=False, archive_format="auto", cache_dir=None,
    force_download=False,
):  # fmt: skip
    """Return the path of a file at the address `origin`, fetched unless it is there already.

    It is kept as `cache_subdir/fname` in `cache_dir`, by default khub's own folder.
    file_hash: sha256 or md5 in hexadecimal digits, which a file that is there must have, too
    extract: unpack a zip or tar archive; the path is that of the folder with its content, and the
    archive stays beside it as `fname_archive`
    Raises ValueError for a wrong hash or an archive with links or paths out of its folder, OSError
    when the server gives no file, or not all of it.
    """
    name, digest = fname or PurePosixPath(urlsplit(origin or "").path).name, file_hash or md5_hash
    if not origin or not name:
        raise ValueError(f"get_file needs origin=, the address of a file; got {origin!r}.")
    folder = Path(cache_dir or config.home()).expanduser() / cache_subdir
    wanted = folder / (f"{name}_archive" if extract or untar else name)
    if force_download or not wanted.is_file() or _wrong(wanted, digest, hash_algorithm):
        with placing(wanted) as part:
            fetch(origin, part, digest, hash_algorithm)
    if wanted == folder / name:
        return str(wanted)
    with placing(folder / name) as part:
        unpack(wanted, part)
    return str(folder / name)


@contextmanager
def placing(path):
    """Give a path, in a folder of its own, whose file or folder comes to `path` when all went well.

    Unlike `saving.files.replacing`, each process of a distribution does so for itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        yield Path(scratch, path.name)
        swap(Path(scratch, path.name), path, Path(scratch, "old"))


def fetch(origin, path, digest=None, kind="auto"):
    """Write what a server gives to a file.  Raises ValueError for another hash, OSError."""
    with urllib.request.urlopen(origin, timeout=60) as answer, open(path, "wb") as file:
        shutil.copyfileobj(answer, file)
        if answer.length:  # what is still to come
            raise OSError(f"{origin} ended {answer.length:,} bytes too early; try again.")
    if found := _wrong(path, digest, kind):
        raise ValueError(f"{origin} has the {found}, expected {digest}.")


def _wrong(path, digest, kind):
    """Return the kind and hash of a file where it is another than `digest`."""
    if digest:
        if kind == "auto":
            kind = "md5" if len(digest) == 32 else "sha256"
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        return f"{kind} {found}" if found != digest.lower() else None


def unpack(path, folder):
    """Unpack a zip or tar archive: plain files and folders that stay inside of `folder`."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        links = [stat.S_ISLNK(m.external_attr >> 16) for m in archive.infolist()]
        names, sizes = archive.namelist(), [m.file_size for m in archive.infolist()]
    elif tarfile.is_tarfile(path):
        archive = tarfile.open(path)  # noqa: SIM115  (closed below)
        members = archive.getmembers()
        links = [not (m.isfile() or m.isdir()) for m in members]
        names, sizes = archive.getnames(), [m.size for m in members]
    else:
        raise ValueError(f"{path} is no zip and no tar archive.")
    with archive:
        check_size(f"{path}, unpacked,", sum(sizes), Path(path).stat().st_size)
        for name, link in zip(names, links):
            if link or "\\" in name or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{path} holds {name!r}, a link or a path out of it; refused.")
        archive.extractall(folder)
