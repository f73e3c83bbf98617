"""The shared secret of a manager and its workers: where it lies, who may make it, how a password becomes one.

A *secret file* is one line, ``vine-secret-1 `` and 64 hexadecimal digits, written by a manager that found none. Any other
content is a *password*, as people write them; it goes through scrypt. Either kind may be given to ``--password``.

Only managers create the file, only at the default place or where they were told, and by a hard link, so that managers that
start at the same moment agree. A worker never makes one: a secret of its own would only fail later and less clearly.
This room never logs, never puts content into a text, and never reads without a bound.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from vinecore.errors import AuthenticationError, UsageError

PASSWORD_FILE_VARIABLE = "VINE_PASSWORD_FILE"
SECRET_BYTES = 32

# All sides must agree on these for ever; a change locks every password user out of older versions. One guess costs
# 16 MiB and some 50 ms. The salt is fixed because the two sides share nothing but the password.
SCRYPT_SALT = b"daskvine password, version 1"
SCRYPT_N = 2**14
SCRYPT_R = 8
SCRYPT_P = 1
# OpenSSL's own default is just above what n and r need; this leaves room for its bookkeeping.
SCRYPT_MEMORY_LIMIT_BYTES = 64 * 1024 * 1024

# No password is this long: the wrong file was named, and hashing gigabytes would look like a hang.
FILE_LIMIT_BYTES = 64 * 1024

_FAMILY = b"vine-secret-"
_PREFIX = b"vine-secret-1 "


def default_secret_path() -> Path:
    """Return ``$XDG_CONFIG_HOME/vine/secret``, or ``~/.config/vine/secret`` where that is not set.

    Raises:
        AuthenticationError: there is no home directory.
    """
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The rule of that variable: a relative path is to be ignored.
    if configured.startswith("/"):
        return Path(configured) / "vine" / "secret"
    try:
        return Path.home() / ".config" / "vine" / "secret"
    except RuntimeError:
        raise AuthenticationError("no home directory for a secret: set HOME or XDG_CONFIG_HOME or use --password FILE") from None


def load_or_create_secret(path: str | os.PathLike[str] | None = None) -> bytes:
    """Return the secret of a manager's file; where there is none yet, make one (0600 in a directory of 0700).

    Parameters:
        path: None means ``default_secret_path()``.

    Raises:
        AuthenticationError: the file is empty, damaged, readable by others, not ours, or cannot be made.
    """
    place = default_secret_path() if path is None else Path(path)
    if not os.path.lexists(place):
        _create(place)
    return _load_private(place)


def load_secret(path: str | os.PathLike[str] | None = None) -> bytes:
    """Return the secret of a file, for a worker; never creates one.

    Raises:
        AuthenticationError: the file is missing, empty, damaged, readable by others or not ours.
    """
    place = default_secret_path() if path is None else Path(path)
    return _load_private(place)


def secret_from_password_file(path: str | os.PathLike[str]) -> bytes:
    """Return the secret of a file that was named by hand: a secret file, or a password (one newline at its end is no part).

    A password may be shared with a group, so only secret files are refused for being readable by others.

    Raises:
        AuthenticationError: the file is missing, unreadable, empty, too large or a damaged secret file.
    """
    place = Path(path).expanduser()
    content, info = _read(place, f"there is no password file {place}: create it with a password in it, or name another one")
    if content.startswith(_FAMILY):
        _refuse_shared(place, info)
    return _secret_in(place, content)


def secret_from_password(text: str | bytes) -> bytes:
    """Return the 32 bytes that scrypt makes of a password.

    Raises:
        UsageError: the password is empty.
    """
    # Bytes that are no UTF-8 reach us as surrogates from the command line; they mean the same bytes as in a file.
    password = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    if not password:
        raise UsageError("the password is empty: give one, or leave it out and the secret file is used")
    return hashlib.scrypt(
        password,
        salt=SCRYPT_SALT,
        n=SCRYPT_N,
        r=SCRYPT_R,
        p=SCRYPT_P,
        maxmem=SCRYPT_MEMORY_LIMIT_BYTES,
        dklen=SECRET_BYTES,
    )


def secret_for_worker(password_file: str | None) -> bytes:
    """Return a worker's secret: from ``password_file``, else ``$VINE_PASSWORD_FILE``, else the default file.

    Raises:
        AuthenticationError: that file is missing or refused; the text names it.
    """
    named = _named_file(password_file)
    return load_secret() if named is None else secret_from_password_file(named)


def awaited_secret(password_file: str | None) -> Path | None:
    """Return the default file where a worker needs it and it is missing: the first manager makes it. None: nothing to wait for.

    Raises:
        AuthenticationError: there is no home directory.
    """
    place = None if _named_file(password_file) is not None else default_secret_path()
    return None if place is None or os.path.lexists(place) else place


def secret_for_manager(password_file: str | None) -> bytes:
    """Return a manager's secret, from the same places; only the default file is made where it is missing.

    Raises:
        AuthenticationError: that file is refused, or a named one is missing; the text names it.
    """
    named = _named_file(password_file)
    if named is None:
        return load_or_create_secret()
    if not os.path.lexists(Path(named).expanduser()):
        leave_out = f"unset {PASSWORD_FILE_VARIABLE}" if password_file is None else "leave password_file out"
        raise AuthenticationError(
            f"there is no password file {named}: create it with a password in it, or {leave_out} and the user's own secret file "
            "is used"
        )
    return secret_from_password_file(named)


def _named_file(password_file: str | None) -> str | None:
    if password_file is not None:
        return password_file
    return os.environ.get(PASSWORD_FILE_VARIABLE) or None


def _load_private(place: Path) -> bytes:
    missing = f"there is no secret at {place}: copy the manager's file there (mode 0600), or name one with --password FILE"
    content, info = _read(place, missing)
    _refuse_shared(place, info)
    return _secret_in(place, content)


def _read(place: Path, missing: str) -> tuple[bytes, os.stat_result]:
    try:
        link = os.lstat(place)
        # A link of somebody else's could lead us to a secret that he knows.
        if stat.S_ISLNK(link.st_mode) and not _is_trusted(link.st_uid):
            raise AuthenticationError(
                f"{place} is a symbolic link that belongs to another user (uid {link.st_uid}): remove it, or use --password FILE"
            )
        with open(place, "rb", opener=_open_without_waiting) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise AuthenticationError(f"{place} is not a regular file: name a secret or password file")
            content = file.read(FILE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise AuthenticationError(missing) from None
    except OSError as error:
        raise AuthenticationError(f"cannot read the secret in {place}: {error.strerror}") from error
    if len(content) > FILE_LIMIT_BYTES:
        raise AuthenticationError(f"{place} is larger than {FILE_LIMIT_BYTES} bytes: it is no secret or password file")
    return content, info


def _open_without_waiting(place: str, flags: int) -> int:
    # Opening a named pipe waits for a writer otherwise, for ever if there is none.
    return os.open(place, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse_shared(place: Path, info: os.stat_result) -> None:
    if info.st_mode & 0o077:
        raise AuthenticationError(
            f"{place} can be used by other users (mode {stat.S_IMODE(info.st_mode):04o}), who could then run code as you: "
            f"run chmod 600 {place}, and if others may have read it, delete it and start again"
        )
    # Root reads everybody's files on purpose, for example a mounted home directory in a container.
    if os.geteuid() != 0 and not _is_trusted(info.st_uid):
        raise AuthenticationError(f"{place} belongs to another user (uid {info.st_uid}): make your own, or use --password FILE")


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _secret_in(place: Path, content: bytes) -> bytes:
    if content.startswith(_FAMILY):
        return _parse_secret(place, content)
    password = content.removesuffix(b"\n").removesuffix(b"\r")
    if not password:
        raise AuthenticationError(f"{place} is empty: delete it so that the manager makes a new one, or write a password into it")
    return secret_from_password(password)


def _parse_secret(place: Path, content: bytes) -> bytes:
    if not content.startswith(_PREFIX):
        raise AuthenticationError(f"{place} was written by a newer version of daskvine: install that version here too")
    try:
        secret = bytes.fromhex(content.removeprefix(_PREFIX).decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise AuthenticationError(f"{place} is a damaged secret file: delete it so that the manager makes a new one")
    return secret


def _create(place: Path) -> None:
    """Make a secret file, or leave the one that somebody else linked there first."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp opens with 0600, in the same directory because links do not cross file systems.
        descriptor, aside = tempfile.mkstemp(prefix=".secret-", dir=place.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_PREFIX + os.urandom(SECRET_BYTES).hex().encode("ascii") + b"\n")
                file.flush()
                os.fsync(descriptor)
            # Never replaces: the first of several managers wins and all read its file.
            os.link(aside, place)
        except FileExistsError:
            pass
        finally:
            Path(aside).unlink()
    except OSError as error:
        raise AuthenticationError(
            f"cannot make a secret at {place}: {error.strerror}. Write a password into a file and name it with --password FILE"
        ) from error
