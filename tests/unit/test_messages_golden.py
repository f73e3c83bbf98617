"""The bytes of every message, pinned: another build of this version must read what this one writes.

A failure here means that the wire has changed. Where that is meant, raise PROTOCOL_VERSION unless a field with a default was
added at the end, and put the new bytes (shown by the failure) here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest

from vinecore.errors import ProtocolError
from vinecore.wire import messages as m

CALL = m.Call(7, 1, 3, -1, b"args", [5, "run-5.1"], 2, True)
PLAIN_CALL = m.Call(8, 1, 4, 6, b"", [], 0, False, True)

GOLDEN: dict[str, list[tuple[msgspec.Struct, str]]] = {
    "decode_from_manager": [
        (m.Welcome(4, "r1", 5.0, 20.0), "99a777656c636f6d6504a27231cb4014000000000000cb4034000000000000ce00010000c400c400c400"),
        (
            m.StartLibrary(1, "lib", 2, "fork", b"code", ["numpy"], 3, 60.0),
            "9fa873746172746c696201a36c696202a4666f726bc404636f646591a56e756d707903cb404e000000000000a090a0a00000",
        ),
        (
            m.StartLibrary(1, "lib", 2, "fork", b"", [], 3, 60.0, "", [m.Mount("a", "b/c", 16)], "true &&", "./p", 5, 700),
            "9fa873746172746c696201a36c696202a4666f726bc4009003cb404e000000000000a09193a161a3622f6310a774727565202626a32e2f7005cd02bc",
        ),
        (m.StopLibrary(1), "92a773746f706c696201"),
        (m.Code(1, 9, b"f", ["math"], [2, 300], True), "98a4636f64650109c4016691a46d6174689202cd012cc3a0"),
        (m.ForgetCode(1, [9, 70000]), "93a6666f72676574019209ce00011170"),
        (
            m.Run(1, [[CALL], [PLAIN_CALL]], [(5, b"five")]),
            "94a372756e0192919a070103ffc404617267739205a772756e2d352e3102c3c2c0919a08010406c4009000c2c3c0919205c40466697665",
        ),
        (m.Cancel([(7, 1), (8, 2)]), "92a663616e63656c92920701920802"),
        (m.HandBack(16), "93a868616e646261636b1000"),
        (m.Fetch("r1-7.1", 5_000_000_000), "97a56665746368a672312d372e31cf000000012a05f20090c4000000"),
        (m.StopFetch("r1-7.1", "h", 9), "94a973746f706665746368a672312d372e31a16809"),
        (m.Upload(11, "r1-7.1"), "93a675706c6f61640ba672312d372e31"),
        (m.Unlink(["a", "b"]), "92a6756e6c696e6b92a161a162"),
        (m.Ping(), "91a470696e67"),
        (m.Pong(), "91a4706f6e67"),
        (m.Keepalive(5.0, 20.0), "93a96b656570616c697665cb4014000000000000cb4034000000000000"),
        (m.Release(True, "done"), "93a772656c65617365c3a4646f6e65"),
    ],
    "decode_from_worker": [
        (
            m.Hello("node1", 4242, 4, 16000, 100000, 1, ["avx"], "3.11", "x86_64", "/store", [("a", 12)]),
            "9da568656c6c6fa56e6f646531cd109204cd3e80ce000186a00191a3617678a4332e3131a67838365f3634a62f73746f72659192a1610c00",
        ),
        (
            m.Done([m.Result(7, 1, m.OK_INLINE, 150, b"value"), m.Result(8, 2, m.OK_STORED, 9, b"", 70000)]),
            "92a4646f6e659297070100cc96c40576616c756500c09708020109c400ce00011170c0",
        ),
        (m.LibraryReady(1, 2, "spawned", "no"), "95a86c696272656164790102a7737061776e6564a26e6f"),
        (m.LibraryGone(1, "no module", b"tb"), "94a76c6962676f6e6501a96e6f206d6f64756c65c4027462"),
        (
            m.LibrarySlow(1, 60.0, "unpickling its functions"),
            "94a76c6962736c6f7701cb404e000000000000b8756e7069636b6c696e67206974732066756e6374696f6e73",
        ),
        (m.Fetched("a", 12), "93a766657463686564a1610c"),
        (m.FetchFailed("a", "disk full"), "95a966657463686661696ca161a96469736b2066756c6c9090"),
        (m.UploadFailed(11, "a", "not here"), "94a675706661696c0ba161a86e6f742068657265"),
        (m.Removed(["a"]), "92a772656d6f76656491a161"),
        (m.Pong(), "91a4706f6e67"),
        (m.Ping(), "91a470696e67"),
        (m.Goodbye("idle"), "92a7676f6f64627965a469646c65"),
    ],
    "decode_on_data_link": [
        (m.Get(4, "a"), "96a367657404a161c4000000"),
        (m.Put(4, 11, "a", 12, b"12345678"), "96a3707574040ba1610cc4083132333435363738"),
        (m.Object("a", 12, b"12345678"), "94a66f626a656374a1610cc4083132333435363738"),
        (m.Missing("a", "b"), "93a76d697373696e67a161a162"),
    ],
    "decode_to_library": [
        (
            m.Begin(1, "lib", b"code", ["math"], "/store", "r1", 65536),
            "9ea5626567696e01a36c6962c404636f646591a46d617468a62f73746f7265a27231ce00010000a0a664697265637490a0a000",
        ),
        (m.Hoist(["math"]), "92a5686f69737491a46d617468"),
        (m.ForkSlots([1, 2]), "92a4666f726b920102"),
    ],
    "decode_from_library": [
        (m.Loading(m.NAMED, "numpy"), "93a76c6f6164696e6702a56e756d7079"),
        (m.Began(b"", "fine"), "94a5626567616ec400a466696e65a0"),
        (m.Hoisted(["math"], 1), "94a7686f697374656491a46d61746801a0"),
        (m.Forked(1, 4243), "93a6666f726b656401cd1093"),
        (m.SlotExited(1, 4243, -9), "95a665786974656401cd1093f7a0"),
    ],
    "decode_to_slot": [
        (m.SlotCode(9, b"f", False), "96a573636f646509c40166c2a090"),
        (
            m.Batch(40, [[CALL, PLAIN_CALL]], [(5, b"five")]),
            "94a562617463682891929a070103ffc404617267739205a772756e2d352e3102c3c2c09a08010406c4009000c2c3c0919205c40466697665",
        ),
        (m.SlotForget([9]), "92a773666f726765749109"),
    ],
    "decode_from_slot": [
        (m.Ready(), "91a57265616479"),
        (m.Tired(700), "92a57469726564cd02bc"),
        (m.Done([m.Result(7, 1, m.RAISED, 150, b"error")]), "92a4646f6e659197070103cc96c4056572726f7200c0"),
    ],
}

UNIONS = {
    "decode_from_manager": get_args(m.FromManager),
    "decode_from_worker": get_args(m.FromWorker),
    "decode_on_data_link": get_args(m.OnDataLink),
    "decode_to_library": get_args(m.ToLibrary),
    "decode_from_library": get_args(m.FromLibrary),
    "decode_to_slot": get_args(m.ToSlot),
    "decode_from_slot": get_args(m.FromSlot),
}

CASES = [
    pytest.param(getattr(m, decoder), message, golden, id=f"{decoder}-{type(message).__name__}")
    for decoder, examples in GOLDEN.items()
    for message, golden in examples
]
# No field of any message is a map or an extension type, and only sandbox and report may be null.
WRONG_EVERYWHERE: tuple[object, ...] = ({}, None, msgspec.msgpack.Ext(1, b"x"))
DECODERS = [pytest.param(getattr(m, decoder), id=decoder) for decoder in GOLDEN]


def test_every_message_has_an_example() -> None:
    defined = {
        item
        for item in vars(m).values()
        if inspect.isclass(item) and issubclass(item, msgspec.Struct) and item is not msgspec.Struct
    }
    shown = {decoder: {type(message) for message, _ in examples} for decoder, examples in GOLDEN.items()}
    assert shown == {decoder: set(union) for decoder, union in UNIONS.items()}
    # Parts of other messages are no messages themselves.
    assert set().union(*shown.values()) == defined - {m.Call, m.Result, m.Mount, m.Product, m.Sandbox, m.Report, m.Record}


@pytest.mark.parametrize(("decode", "message", "golden"), CASES)
def test_bytes_are_pinned_and_read_back(decode: m.Decoder, message: msgspec.Struct, golden: str) -> None:
    assert m.encode(message).hex() == golden
    for data in (bytes.fromhex(golden), memoryview(bytes.fromhex(golden))):
        back = decode(data)
        assert type(back) is type(message)
        assert back == message


@pytest.mark.parametrize(("decode", "message", "golden"), CASES)
def test_truncated_or_prolonged_input_is_refused(decode: m.Decoder, message: msgspec.Struct, golden: str) -> None:
    data = bytes.fromhex(golden)
    for size_bytes in range(len(data)):
        with pytest.raises(ProtocolError, match="not a message"):
            decode(data[:size_bytes])
    with pytest.raises(ProtocolError, match="not a message"):
        decode(data + b"\xc0")


def _with_one_part_replaced(part: object, wrong: object) -> Iterator[object]:
    """Every copy of nested lists in which one item, at any depth, is ``wrong``."""
    if isinstance(part, list):
        for index, item in enumerate(part):
            for changed in (wrong, *_with_one_part_replaced(item, wrong)):
                yield [*part[:index], changed, *part[index + 1 :]]


def test_bytes_of_a_report_are_pinned_and_older_ones_read() -> None:
    report = m.Report(9, b"out", [("a", 5, b"hello")], ["b"], ["c"], "max wall time", 1.0, 2.0, 3, True, "why")
    done = m.Done([m.Result(7, 1, m.OK_INLINE, 5, b"", 9, report)])
    older = "09c4036f75749193a16105c40568656c6c6f91a16291a163ad6d61782077616c6c2074696d65cb3ff0000000000000cb400000000000000003c3"
    assert m.encode(done).hex() == f"92a4646f6e65919707010005c400099b{older}a3776879"
    assert m.decode_from_slot(m.encode(done)) == done
    back = m.decode_from_slot(bytes.fromhex(f"92a4646f6e65919707010005c400099a{older}"))
    report.reason = ""
    assert back == done


@pytest.mark.parametrize(("decode", "message", "golden"), CASES)
def test_wrong_types_are_refused_in_every_field(decode: m.Decoder, message: msgspec.Struct, golden: str) -> None:
    plain = msgspec.msgpack.decode(bytes.fromhex(golden))
    for wrong in WRONG_EVERYWHERE:
        for changed in _with_one_part_replaced(plain, wrong):
            if changed == plain:
                continue  # null, where null is what the field already holds
            with pytest.raises(ProtocolError, match="not a message"):
                decode(msgspec.msgpack.encode(changed))


@pytest.mark.parametrize("decode", DECODERS)
def test_messages_of_other_directions_are_refused(decode: m.Decoder) -> None:
    own = {type(message) for decoder, examples in GOLDEN.items() for message, _ in examples if getattr(m, decoder) is decode}
    others = [message for examples in GOLDEN.values() for message, _ in examples if type(message) not in own]
    assert len(others) > 20
    for message in others:
        with pytest.raises(ProtocolError, match="not a message"):
            decode(m.encode(message))


NONSENSE = {
    "empty": b"",
    "unknown tag": msgspec.msgpack.encode(["no-such-message", 1]),
    "tag of another type": msgspec.msgpack.encode([1, 1]),
    "no tag": msgspec.msgpack.encode([]),
    "a map": msgspec.msgpack.encode({"type": "ping"}),
    "a number": msgspec.msgpack.encode(5),
    "a reserved byte": b"\xc1",
    "a pickle": b"\x80\x05K\x01.",
    "arrays without end": b"\x91" * 100_000,
    "an array of four thousand million": b"\xdd\xff\xff\xff\xff",
    "a text of four thousand million bytes": b"\x92\xdb\xff\xff\xff\xff",
    "a tag that is no text": b"\x91\xa2\xff\xfe",
}


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in NONSENSE.items()])
def test_nonsense_is_refused(decode: m.Decoder, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        decode(data)


def _raw(*fields: Any) -> bytes:
    return msgspec.msgpack.encode(list(fields))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_raw("handback", "16"), id="text for a number"),
        pytest.param(_raw("handback", 1.5), id="fraction for a number"),
        pytest.param(_raw("handback", True), id="truth for a number"),
        pytest.param(_raw("release", 1, "x"), id="number for truth"),
        pytest.param(_raw("unlink", "ab"), id="text for a list of texts"),
        pytest.param(_raw("unlink", [b"ab"]), id="bytes for a text"),
        pytest.param(_raw("cancel", [[1, 2, 3]]), id="three for a pair"),
        pytest.param(_raw("code", 1, 2, "f", [], [], True), id="text for bytes"),
        pytest.param(b"\x92\xa6unlink\x91\xa2\xff\xfe", id="a text that is no Unicode"),
    ],
)
def test_near_misses_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        m.decode_from_manager(data)


def test_a_field_that_a_later_build_added_is_ignored() -> None:
    assert m.decode_from_manager(_raw("handback", 16, 3, "new")) == m.HandBack(16, 3)


def test_limits_fit_into_each_other() -> None:
    assert m.CONTROL_FRAME_LIMIT_BYTES > m.BATCH_LIMIT_BYTES + m.INLINE_LIMIT_BYTES
