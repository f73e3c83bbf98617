"""Secret and password files: who makes them, what is refused, and that the texts say what to do."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from vinecore.errors import AuthenticationError, UsageError
from vinecore.shell import secrets

HEX = "ab" * 32
RAW = bytes.fromhex(HEX)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the real home directory or the caller's settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv(secrets.PASSWORD_FILE_VARIABLE, raising=False)
    return tmp_path / "home"


def put(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_default_place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.default_secret_path() == home / ".config" / "vine" / "secret"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert secrets.default_secret_path() == home / ".config" / "vine" / "secret"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert secrets.default_secret_path() == tmp_path / "config" / "vine" / "secret"


def test_no_home_directory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(AuthenticationError, match="set HOME or XDG_CONFIG_HOME"):
        secrets.default_secret_path()


def test_manager_creates_once_and_privately_under_any_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        secret = secrets.load_or_create_secret()
    finally:
        os.umask(before)
    place = home / ".config" / "vine" / "secret"
    assert len(secret) == 32
    assert place.read_text() == f"vine-secret-1 {secret.hex()}\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert secrets.load_or_create_secret() == secret
    assert secrets.load_secret() == secret
    # Nothing is left aside.
    assert [entry.name for entry in place.parent.iterdir()] == ["secret"]


def test_two_files_have_two_secrets(tmp_path: Path) -> None:
    assert secrets.load_or_create_secret(tmp_path / "a") != secrets.load_or_create_secret(tmp_path / "b")


def test_the_loser_of_a_race_reads_the_winners_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "vine" / "secret"
    link = os.link

    def late_link(source: str, target: Path) -> None:
        put(target, f"vine-secret-1 {HEX}\n")
        link(source, target)

    monkeypatch.setattr(os, "link", late_link)
    assert secrets.load_or_create_secret(place) == RAW
    assert [entry.name for entry in place.parent.iterdir()] == ["secret"]


def test_managers_that_start_together_agree(tmp_path: Path) -> None:
    place = tmp_path / "vine" / "secret"
    count = 8
    barrier = threading.Barrier(count, timeout=30)
    found: list[bytes] = []

    def start() -> None:
        barrier.wait()
        found.append(secrets.load_or_create_secret(place))

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == count
    assert len(set(found)) == 1


def test_worker_never_creates(home: Path) -> None:
    place = home / ".config" / "vine" / "secret"
    with pytest.raises(AuthenticationError) as caught:
        secrets.load_secret()
    assert str(place) in str(caught.value)
    assert "--password" in str(caught.value)
    assert not home.exists()


def test_a_place_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    put(tmp_path / "file", "x")
    with pytest.raises(AuthenticationError, match=r"cannot make a secret at .*--password FILE"):
        secrets.load_or_create_secret(tmp_path / "file" / "secret")


@pytest.mark.parametrize("load", [secrets.load_or_create_secret, secrets.load_secret])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_files_that_others_can_use_are_refused(tmp_path: Path, load: object, mode: int) -> None:
    place = put(tmp_path / "secret", f"vine-secret-1 {HEX}\n", mode)
    assert callable(load)
    with pytest.raises(AuthenticationError) as caught:
        load(place)
    assert f"mode {mode:04o}" in str(caught.value)
    assert f"chmod 600 {place}" in str(caught.value)
    assert HEX not in str(caught.value)


def test_a_shared_secret_file_is_refused_by_flag_too(tmp_path: Path) -> None:
    place = put(tmp_path / "secret", f"vine-secret-1 {HEX}\n", 0o644)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        secrets.secret_from_password_file(place)


def test_a_group_may_share_a_password(tmp_path: Path) -> None:
    place = put(tmp_path / "password", "open sesame\n", 0o640)
    assert secrets.secret_from_password_file(place) == secrets.secret_from_password("open sesame")


@pytest.mark.parametrize("load", [secrets.load_or_create_secret, secrets.load_secret, secrets.secret_from_password_file])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("\r\n", "is empty"),
        ("vine-secret-1 \n", "damaged"),
        (f"vine-secret-1 {HEX[:-2]}\n", "damaged"),
        (f"vine-secret-1 {HEX}00\n", "damaged"),
        ("vine-secret-1 " + "xy" * 32, "damaged"),
        (b"vine-secret-1 \xff\xfe", "damaged"),
        (f"vine-secret-2 {HEX}\n", "newer version"),
        ("x" * (secrets.FILE_LIMIT_BYTES + 1), "larger than"),
    ],
)
def test_unusable_content_is_refused(tmp_path: Path, load: object, content: str | bytes, text: str) -> None:
    place = put(tmp_path / "secret", content)
    assert callable(load)
    with pytest.raises(AuthenticationError, match=text) as caught:
        load(place)
    assert str(place) in str(caught.value)
    assert HEX[:8] not in str(caught.value)


@pytest.mark.parametrize("load", [secrets.load_or_create_secret, secrets.load_secret, secrets.secret_from_password_file])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(AuthenticationError, match="Is a directory"):
        load(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(AuthenticationError, match="not a regular file"):
        load(pipe)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AuthenticationError, match=r"there is no (secret|password file)"):
        load(dangling)
    assert not (tmp_path / "nowhere").exists()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(AuthenticationError, match="cannot read"):
        load(loop)


def test_own_symbolic_links_are_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(put(tmp_path / "secret", f"vine-secret-1 {HEX}\n"))
    assert secrets.load_secret(link) == RAW


def test_symbolic_links_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(put(tmp_path / "secret", f"vine-secret-1 {HEX}\n"))
    # Root's links are trusted, so a test that runs as root has to give the link away.
    if os.geteuid() == 0:
        os.lchown(link, 54321, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for load in (secrets.load_or_create_secret, secrets.load_secret, secrets.secret_from_password_file):
        with pytest.raises(AuthenticationError, match="symbolic link that belongs to another user"):
            load(link)


def test_files_of_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = put(tmp_path / "secret", f"vine-secret-1 {HEX}\n")
    if os.geteuid() == 0:
        os.chown(place, 54321, -1)
        # Root reads what a container has mounted.
        assert secrets.load_secret(place) == RAW
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(AuthenticationError, match="belongs to another user"):
        secrets.load_secret(place)


def test_password_goes_through_scrypt() -> None:
    """Pinned: other versions and other machines must come to the same secret."""
    assert secrets.secret_from_password("open sesame").hex() == "5dbc6a34f750d8a7a19f5f569af4d01f312de28d76699455f5a20f49e15de77f"
    assert secrets.secret_from_password(b"open sesame") == secrets.secret_from_password("open sesame")
    assert secrets.secret_from_password("open sesame\n") != secrets.secret_from_password("open sesame")
    assert secrets.secret_from_password("\udcff") == secrets.secret_from_password(b"\xff")


@pytest.mark.parametrize("empty", ["", b""])
def test_empty_password_is_refused(empty: str | bytes) -> None:
    with pytest.raises(UsageError, match="password is empty"):
        secrets.secret_from_password(empty)


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"pw", b"pw"), (b"pw\n", b"pw"), (b"pw\r\n", b"pw"), (b"pw\n\n", b"pw\n"), (b" pw ", b" pw "), (b"\xff\x00", b"\xff\x00")],
)
def test_one_newline_at_the_end_is_no_part_of_a_password(tmp_path: Path, content: bytes, password: bytes) -> None:
    place = put(tmp_path / "password", content)
    assert secrets.secret_from_password_file(place) == secrets.secret_from_password(password)


def test_either_kind_of_file_works_in_either_place(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", f"vine-secret-1 {HEX}\n")
    password = put(tmp_path / "password", "pw\n")
    for load in (secrets.load_or_create_secret, secrets.load_secret, secrets.secret_from_password_file):
        assert load(raw) == RAW
        assert load(password) == secrets.secret_from_password("pw")


def test_missing_password_file_is_named(tmp_path: Path) -> None:
    for find in (secrets.secret_from_password_file, secrets.secret_for_worker, secrets.secret_for_manager):
        with pytest.raises(AuthenticationError) as caught:
            find(str(tmp_path / "missing"))
        assert str(tmp_path / "missing") in str(caught.value)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("find", [secrets.secret_for_worker, secrets.secret_for_manager])
def test_flag_before_variable_before_default(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: object) -> None:
    assert callable(find)
    default = secrets.load_or_create_secret()
    put(home / "by-flag", "flag\n")
    by_variable = put(tmp_path / "by-variable", "variable\n")
    monkeypatch.setenv(secrets.PASSWORD_FILE_VARIABLE, "")
    assert find(None) == default
    monkeypatch.setenv(secrets.PASSWORD_FILE_VARIABLE, str(by_variable))
    assert find(None) == secrets.secret_from_password("variable")
    assert find("~/by-flag") == secrets.secret_from_password("flag")
    # A flag that was given counts, also an empty one: falling back would use another secret than was meant.
    with pytest.raises(AuthenticationError):
        find("")


def test_only_managers_make_the_default_file(home: Path) -> None:
    with pytest.raises(AuthenticationError):
        secrets.secret_for_worker(None)
    assert not home.exists()
    secret = secrets.secret_for_manager(None)
    assert secrets.secret_for_worker(None) == secret
