"""THE protocol: every message of every link, by direction, with its encoder and decoder.

Links (DESIGN 4): *control* (worker <-> manager), *data* (worker dials the manager, one object per link) and *library*
(worker <-> library parent and worker <-> slot, over socket pairs). Messages are tagged arrays of msgspec: decoding
validates types. Bytes of user payloads pass through unopened; nothing here is ever unpickled by the manager.

Each docstring says: who sends, when legal, what it causes, what answers it, whether a duplicate is harmless.
New fields get defaults, types never change, removal raises ``PROTOCOL_VERSION``.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from vinecore.errors import ProtocolError

PROTOCOL_VERSION = 1

# Larger payloads travel on data links (or through the store); raising it lengthens the time a heartbeat may queue.
INLINE_LIMIT_BYTES = 64 * 1024
# One Run or Done frame is cut near this size, so that a peer's buffer stays bounded.
BATCH_LIMIT_BYTES = 4 * 1024 * 1024
# Of each file in a sandbox, for its name in the store.
SANDBOX_NAME_BYTES = 64
# A control frame above this is a ProtocolError; it must exceed BATCH_LIMIT_BYTES plus one inline payload.
CONTROL_FRAME_LIMIT_BYTES = 16 * 1024 * 1024


class Record(Struct):
    """Base of the machines' events and orders: slotted, comparable, and made in C (forty dataclasses cost a start-up 12 ms)."""


# Result.status
OK_INLINE = 0  # value holds the encoded result
OK_STORED = 1  # the result is an object of the worker's store; size_bytes is its length
OK_KEPT = 2  # the result stays unwritten in the slot, for later calls of the same group
RAISED = 3  # value holds an encoded error; the call is not retried unless its retries say so
LOST = 4  # the slot died while it ran this call; value holds a text
HANDED_BACK = 5  # never started; nothing was executed
NO_INPUT = 6  # an input was not here; value holds its name as text
SPOILT_INPUT = 7  # never started: an earlier task of this slot wrote into an input, which was dropped; the same value
WRITTEN_LATER = 8  # what was OK_KEPT, after all: value holds it, or size_bytes is the length of its object

# With this code a library's process ends when its descriptors are not its own any more: no message can say so.
NO_CHANNEL = 76

# Loading.step
INIT = 0  # its init command runs
FOUND = 1  # a module that its functions import: only a courtesy to them
NAMED = 2  # a module that the user wants there
UNPICKLE = 3
CONTEXT = 4

# Mount.flags and Product.flags
SYMLINK = 1  # one symbolic link instead of a copy or hard link
HOME = 2  # wanted at the manager: small content rides with the result
ON_FAILURE = 4  # only when the task did not fully succeed
ON_SUCCESS = 8  # only when it did
EXECUTABLE = 16  # a program: the task may run it


class Mount(Struct, array_like=True):
    """An input of a sandbox: an object of the store (str) or an inline value (int) under a relative path."""

    source: int | str
    path: str
    flags: int = 0


class Product(Struct, array_like=True):
    """An output of a sandbox: a relative path, and the name of the object that it becomes."""

    path: str
    name: str
    flags: int = 0


class Sandbox(Struct, array_like=True):
    """Run a call in a private directory. With ``command`` a shell runs that instead of a function.

    ``environment``: None unsets. Limits of 0 mean none. ``plain_pickle``: the value is one pickle without a container, so that
    other tasks can read it as a file; ``raw_result``: it is bytes, taken as they are.
    """

    mounts: list[Mount]
    products: list[Product]
    environment: list[tuple[str, str | None]]
    command: str = ""
    wall_time_s: float = 0.0
    end_at_s: float = 0.0
    cores: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    gpus: int = 0
    stdout_limit_bytes: int = 1 << 30
    raw_result: bool = False
    plain_pickle: bool = False


def text_bytes(text: str) -> int:
    """What a text takes in a message."""
    return len(text) if text.isascii() else len(text.encode())


def sandbox_bytes(box: Sandbox) -> int:
    """About what a sandbox takes in a message."""
    size = text_bytes(box.command)
    for name, value in box.environment:
        size += text_bytes(name) + text_bytes(value or "")
    for parts in (box.mounts, box.products):
        for part in parts:
            size += text_bytes(part.path) + SANDBOX_NAME_BYTES
    return size


def filled_sandbox(box: Sandbox, sources: list[int | str], names: list[str], amounts: tuple[int, int, int, int]) -> Sandbox:
    """A copy with the sources of its mounts, the names of its products and its allocation (cores, MB, MB, gpus)."""
    return msgspec.structs.replace(
        box,
        mounts=[Mount(source, mount.path, mount.flags) for source, mount in zip(sources, box.mounts, strict=True)],
        products=[Product(product.path, name, product.flags) for name, product in zip(names, box.products, strict=True)],
        cores=amounts[0],
        memory_mb=amounts[1],
        disk_mb=amounts[2],
        gpus=amounts[3],
    )


class Report(Struct, array_like=True):
    """What happened in a sandbox. ``outcome``: empty, or a result string of the reference (``max wall time`` ...).

    ``reason``: why it did not succeed, for people, where the other fields do not say it.
    """

    exit_code: int
    stdout: bytes
    products: list[tuple[str, int, bytes]]
    missing: list[str]
    damaged: list[str]
    outcome: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0
    disk_mb: int = 0
    stdout_cut: bool = False
    reason: str = ""


class Call(Struct, array_like=True, gc=False):
    """One execution of a function (or of one vertex of a graph's piece). Part of ``Run``.

    ``index`` -1: ``code_id`` names a pickled function and ``payload`` its pickled arguments; otherwise ``code_id``
    names a piece of a graph and ``index`` the vertex in it. ``inputs``: an int is a value in the slot's table (by task
    id), a str the cache name of an object in the worker's store. ``uses``: how many later calls of the same group
    read the result out of the slot's table. ``publish``: report the value (inline or stored). With ``payload_file``
    the first input is the object that holds the pickled arguments.
    """

    task_id: int
    attempt: int
    code_id: int
    index: int
    payload: bytes
    inputs: list[int | str]
    uses: int
    publish: bool
    payload_file: bool = False
    sandbox: Sandbox | None = None


class Result(Struct, array_like=True, gc=False):
    """The end of one Call. Part of ``Done``. ``duration_us`` is the time inside the user's function."""

    task_id: int
    attempt: int
    status: int
    duration_us: int
    value: bytes = b""
    size_bytes: int = 0
    report: Report | None = None


# ---------------------------------------------------------------- manager -> worker


class Welcome(Struct, array_like=True, tag="welcome", frozen=True):
    """First message of the manager. ``run`` prefixes the names of this run's temps; keepalive in seconds, 0: nobody is asked.

    ``transfer_key`` makes and checks the tickets with which peers get objects from each other; with TLS, ``peer_key`` and
    ``peer_certificate`` (PEM, of this run only) are what workers show to each other.
    """

    worker_id: int
    run: str
    keepalive_interval_s: float
    keepalive_timeout_s: float
    inline_limit_bytes: int = INLINE_LIMIT_BYTES
    transfer_key: bytes = b""
    peer_key: bytes = b""
    peer_certificate: bytes = b""


class StartLibrary(Struct, array_like=True, tag="startlib", frozen=True):
    """Start one instance of a library; answered by LibraryReady or LibraryGone. A duplicate is refused.

    ``mounts``: objects of the store in the directory of the instance. ``init_command``: a shell runs it before the interpreter.
    ``program``: how a shell starts a program of the user's that answers the calls, instead of functions. A slot is replaced
    after ``max_calls`` calls, or when it has grown by ``growth_mb`` (0: never).
    """

    library_id: int
    name: str
    slots: int
    exec_mode: str
    payload: bytes
    modules: list[str]
    max_restarts: int
    restart_window_s: float
    payload_name: str = ""
    mounts: list[Mount] = []
    init_command: str = ""
    program: str = ""
    max_calls: int = 0
    growth_mb: int = 0


class StopLibrary(Struct, array_like=True, tag="stoplib", frozen=True):
    """End a library and its slots; answered by LibraryGone. A duplicate is harmless."""

    library_id: int


class Code(Struct, array_like=True, tag="code", frozen=True):
    """A pickled function or graph piece, before the first Run that names it. A duplicate replaces it, harmless.

    ``modules`` are hoisted before slots run it; ``requires`` are the functions that a graph's piece names.
    A large one is not carried: ``name`` is its object, to be fetched.
    """

    library_id: int
    code_id: int
    payload: bytes
    modules: list[str]
    requires: list[int]
    is_piece: bool
    name: str = ""


class ForgetCode(Struct, array_like=True, tag="forget", frozen=True):
    """These code ids are not used again. Causes memory to be freed; no answer; a duplicate is harmless."""

    library_id: int
    code_ids: list[int]


class Run(Struct, array_like=True, tag="run"):
    """Work. Each group runs in order in one slot; groups are independent. ``values``: inline inputs by task id.

    Answered by one Result for each Call, in any number of Done messages. A duplicate is an error of the manager.
    """

    library_id: int
    groups: list[list[Call]]
    values: list[tuple[int, bytes]]


class Cancel(Struct, array_like=True, tag="cancel", frozen=True):
    """Give up these (task id, attempt): drop what waits, end what runs. No answer. Unknown pairs are harmless."""

    tasks: list[tuple[int, int]]


class HandBack(Struct, array_like=True, tag="handback", frozen=True):
    """Return about ``count`` calls of a library that have not started; answered by Results with HANDED_BACK (maybe none).

    A duplicate asks for as many again.
    """

    count: int
    library_id: int = 0


class Fetch(Struct, array_like=True, tag="fetch", frozen=True):
    """Bring an object here; answered by Fetched or FetchFailed. Duplicates attach.

    ``sources``: peers to ask in this order, with the ticket; none means the manager, over a data link. An empty host is the
    manager's own, as this worker knows it. ``transfer_id``, to be repeated in Get: the manager passes on what another worker has,
    which may begin late.
    """

    name: str
    size_bytes: int
    sources: list[tuple[str, int]] = []
    ticket: bytes = b""
    expires_s: int = 0
    transfer_id: int = 0


class StopFetch(Struct, array_like=True, tag="stopfetch", frozen=True):
    """The peer at this address is gone: a fetch of this object from it is not waited for, the next source is asked.

    No answer but that of the fetch. Harmless when nothing is fetched from there.
    """

    name: str
    host: str
    port: int


class Upload(Struct, array_like=True, tag="upload", frozen=True):
    """Send an object to the manager over a data link; UploadFailed when it is not here. ``transfer_id`` is ours.

    The manager keeps it, or passes it on to the worker that asked with this ``transfer_id``.
    """

    transfer_id: int
    name: str


class Unlink(Struct, array_like=True, tag="unlink", frozen=True):
    """Drop these objects from the store. No answer; names that are not here are harmless."""

    names: list[str]


class Ping(Struct, array_like=True, tag="ping", frozen=True):
    """Keepalive of either side; the other one answers with Pong. Harmless at any time."""


class Keepalive(Struct, array_like=True, tag="keepalive", frozen=True):
    """New seconds in the place of Welcome's: both sides have to agree on how long silence may last."""

    interval_s: float
    timeout_s: float


class Release(Struct, array_like=True, tag="release", frozen=True):
    """The manager is done with this worker. ``exit``: end the process, else look for another manager."""

    exit: bool
    reason: str


# ---------------------------------------------------------------- worker -> manager


class Hello(Struct, array_like=True, tag="hello", frozen=True):
    """First message of a worker after the handshake. Sizes in MB. A second one is a ProtocolError."""

    hostname: str
    pid: int
    cores: int
    memory_mb: int
    disk_mb: int
    gpus: int
    features: list[str]
    python: str
    machine: str
    store: str
    objects: list[tuple[str, int]]
    peer_port: int = 0


class Done(Struct, array_like=True, tag="done"):
    """Ends of calls. Late ones of older attempts are dropped by the manager; a duplicate is harmless."""

    results: list[Result]


class LibraryReady(Struct, array_like=True, tag="libready", frozen=True):
    """The library answers calls with this many slots; said again when that changes. ``note``: why slots are not forked.

    ``lacks``: why there are fewer slots than were asked for. No slots: all have ended, and those in their place take long.
    """

    library_id: int
    slots: int
    note: str = ""
    lacks: str = ""


class LibraryGone(Struct, array_like=True, tag="libgone", frozen=True):
    """The library ended here (``error``: text of why it failed, empty when it was asked to stop)."""

    library_id: int
    error: str
    traceback: bytes = b""


class LibrarySlow(Struct, array_like=True, tag="libslow", frozen=True):
    """The library has been starting for ``seconds``; ``doing``: what it does now, for people. A duplicate is harmless."""

    library_id: int
    seconds: float
    doing: str


class Fetched(Struct, array_like=True, tag="fetched", frozen=True):
    """An object is complete in the store."""

    name: str
    size_bytes: int


class FetchFailed(Struct, array_like=True, tag="fetchfail", frozen=True):
    """An object could not be brought here; ``reason`` is for people.

    Of the sources that were named, by number: ``absent`` answered that they do not have it, ``unreached`` did not answer as they
    should.
    """

    name: str
    reason: str
    absent: list[int] = []
    unreached: list[int] = []


class UploadFailed(Struct, array_like=True, tag="upfail", frozen=True):
    """An object that was asked for is not here or cannot be read (``reason`` begins with FileLost), or could not be sent."""

    transfer_id: int
    name: str
    reason: str


class Removed(Struct, array_like=True, tag="removed", frozen=True):
    """Objects that vanished from the store without an Unlink (disk error, damage)."""

    names: list[str]


class Pong(Struct, array_like=True, tag="pong", frozen=True):
    """Answer to Ping."""


class Goodbye(Struct, array_like=True, tag="goodbye", frozen=True):
    """The worker leaves on purpose; its link closes next."""

    reason: str


# ---------------------------------------------------------------- data links (worker dials; first message says which)


class Get(Struct, array_like=True, tag="get", frozen=True):
    """Worker asks for an object; answered by Object and that many raw bytes, or Missing. A peer wants to see the ticket.

    With the ``transfer_id`` of its Fetch it waits at the manager until another worker sends the object.
    """

    worker_id: int
    name: str
    ticket: bytes = b""
    expires_s: int = 0
    transfer_id: int = 0


class Put(Struct, array_like=True, tag="put", frozen=True):
    """Worker brings the object of an Upload; ``size_bytes`` raw bytes follow. ``digest``: xxh3 of them."""

    worker_id: int
    transfer_id: int
    name: str
    size_bytes: int
    digest: bytes


class Object(Struct, array_like=True, tag="object", frozen=True):
    """``size_bytes`` raw bytes follow, whose xxh3 is ``digest``."""

    name: str
    size_bytes: int
    digest: bytes


class Missing(Struct, array_like=True, tag="missing", frozen=True):
    """There is no such object here. ``why``: in words for people; empty where there is nothing to say."""

    name: str
    why: str = ""


# ---------------------------------------------------------------- worker <-> library parent


class Begin(Struct, array_like=True, tag="begin", frozen=True):
    """Worker to a fresh library process: what it is. Sent once. ``store`` is the directory of objects.

    The last fields are those of StartLibrary.
    """

    library_id: int
    name: str
    payload: bytes
    modules: list[str]
    store: str
    run: str
    inline_limit_bytes: int
    payload_path: str = ""
    exec_mode: str = "direct"
    mounts: list[Mount] = []
    init_command: str = ""
    program: str = ""
    growth_mb: int = 0


class Hoist(Struct, array_like=True, tag="hoist", frozen=True):
    """Import these modules in the parent; answered by Hoisted. Failures are ignored here and raised in the call."""

    modules: list[str]


class ForkSlots(Struct, array_like=True, tag="fork", frozen=True):
    """Fork one slot for each id; the sockets and claim files ride along as descriptors (SCM_RIGHTS)."""

    slot_ids: list[int]


class Loading(Struct, array_like=True, tag="loading", frozen=True):
    """The library's process begins a step of its start: if it ends or hangs there, that step is to blame. No answer.

    ``name``: of the module, or of the context function.
    """

    step: int
    name: str = ""

    def text(self) -> str:
        """What it does, for people."""
        return (
            "running its init_command",
            f"importing {self.name!r} (a module that its functions import)",
            f"importing {self.name!r} (from its hoisting_modules)",
            "unpickling its functions",
            f"running its context function {self.name}",
        )[self.step]


class Began(Struct, array_like=True, tag="began", frozen=True):
    """The library's own code is loaded (context included); ``error``: an encoded error, empty when well.

    ``unsafe``: why slots cannot be forked from this process (it has threads), empty when they can.
    """

    error: bytes
    text: str = ""
    unsafe: str = ""


class Hoisted(Struct, array_like=True, tag="hoisted", frozen=True):
    """Answer to Hoist: modules that are imported now, how many threads the process has, and ``unsafe`` as in Began."""

    modules: list[str]
    threads: int
    unsafe: str = ""


class Forked(Struct, array_like=True, tag="forked", frozen=True):
    """A slot process exists."""

    slot_id: int
    pid: int


class SlotExited(Struct, array_like=True, tag="exited", frozen=True):
    """A slot process ended; ``status`` is the exit code, negative for a signal; ``text``: what it said about it.

    ``pid`` 0: there was none, and ``text`` says why.
    """

    slot_id: int
    pid: int
    status: int
    text: str = ""


# ---------------------------------------------------------------- worker <-> slot


class SlotCode(Struct, array_like=True, tag="scode", frozen=True):
    """Code for this slot, before the first batch that names it. ``path``: read it from there instead.

    ``requires``: the functions that a graph's piece names, which came before it.
    """

    code_id: int
    payload: bytes
    is_piece: bool
    path: str = ""
    requires: list[int] = []


class Batch(Struct, array_like=True, tag="batch"):
    """Calls to run in order. ``first`` is the sequence number of the first of them in this slot's life."""

    first: int
    groups: list[list[Call]]
    values: list[tuple[int, bytes]]


class SlotForget(Struct, array_like=True, tag="sforget", frozen=True):
    """Code ids that are not used again."""

    code_ids: list[int]


class Ready(Struct, array_like=True, tag="ready", frozen=True):
    """Slot to worker: it has loaded what it loads by itself, and takes calls. Forked slots do not say so; no answer."""


class Tired(Struct, array_like=True, tag="tired", frozen=True):
    """Slot to worker, between two batches: its memory has grown past the limit. It is replaced; a duplicate is harmless."""

    grown_mb: int


FromManager = (
    Welcome
    | StartLibrary
    | StopLibrary
    | Code
    | ForgetCode
    | Run
    | Cancel
    | HandBack
    | Fetch
    | StopFetch
    | Upload
    | Unlink
    | Ping
    | Pong
    | Keepalive
    | Release
)
FromWorker = (
    Hello
    | Done
    | LibraryReady
    | LibraryGone
    | LibrarySlow
    | Fetched
    | FetchFailed
    | UploadFailed
    | Removed
    | Pong
    | Ping
    | Goodbye
)
OnDataLink = Get | Put | Object | Missing
ToLibrary = Begin | Hoist | ForkSlots
FromLibrary = Loading | Began | Hoisted | Forked | SlotExited
ToSlot = SlotCode | Batch | SlotForget
FromSlot = Done | Ready | Tired

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


class Decoder:
    """Decodes one direction of one link; anything that is not a legal message of it raises ProtocolError."""

    __slots__ = ("_decode", "_name")

    def __init__(self, union: object, name: str) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._name = name

    def __call__(self, data: bytes | memoryview) -> object:
        try:
            return self._decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message {self._name}: {error}") from None


decode_from_manager = Decoder(FromManager, "from a manager")
decode_from_worker = Decoder(FromWorker, "from a worker")
decode_on_data_link = Decoder(OnDataLink, "of a data link")
decode_to_library = Decoder(ToLibrary, "to a library")
decode_from_library = Decoder(FromLibrary, "from a library")
decode_to_slot = Decoder(ToSlot, "to a slot")
decode_from_slot = Decoder(FromSlot, "from a slot")
