"""``vine_worker HOST PORT``: parse, call, exit code."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys

from vinecore.errors import UsageError, VineError
from vinecore.model.numbers import AMOUNT_LIMIT, CORES_LIMIT, SECONDS_LIMIT, shown

_DESCRIPTION = (
    "Run work for a manager. It connects by itself (also before the manager starts), serves one manager after another, "
    "and ends with its whole process tree."
)

# Each ends a worker in good order. A hang-up is the end of the terminal or the ssh session that it was started from.
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

# The least and the most of each resource.
_AMOUNTS = {"cores": (1, CORES_LIMIT), "memory": (1, AMOUNT_LIMIT), "disk": (1, AMOUNT_LIMIT), "gpus": (0, CORES_LIMIT)}


def build_parser() -> argparse.ArgumentParser:
    """The command line, every flag explained."""
    parser = argparse.ArgumentParser(prog="vine_worker", description=_DESCRIPTION)
    parser.add_argument("manager", nargs="+", metavar="HOST PORT", help="HOST PORT, or HOST:PORT[;HOST:PORT...], or [IPV6]:PORT")
    _add_size(parser)
    _add_files(parser)
    _add_times(parser)
    parser.add_argument(
        "-d", "--debug", nargs="?", const="all", default=None, metavar="SUBSYSTEM", help="print every event on standard error"
    )
    parser.add_argument("-v", "--version", action="version", version=_version())
    # Used by an embedded manager only: descriptors it left open for us.
    parser.add_argument("--secret-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--lifeline-fd", type=int, default=-1, help=argparse.SUPPRESS)
    return parser


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_argument_group("what it offers (default: all of the machine; environment CORES, MEMORY, DISK, GPUS)")
    size.add_argument("--cores", default=None, help=f"number of cores (at most {CORES_LIMIT}), or 'all'")
    size.add_argument("--memory", default=None, metavar="MB", help="memory in MB, or 'all'")
    size.add_argument("--disk", default=None, metavar="MB", help="disk in MB (default: half of what is free in the workspace)")
    size.add_argument("--gpus", default=None, help="number of gpus, or 'all' (default: as many as nvidia-smi lists)")
    size.add_argument(
        "--feature", action="append", default=[], metavar="TEXT", help="a feature that tasks may ask for; repeatable"
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("files and secrets")
    where.add_argument(
        "-s",
        "--workspace",
        "--workdir",
        default=None,
        metavar="DIR",
        help="directory for the cache (default: a private one, removed at the end)",
    )
    where.add_argument("--keep-workspace", action="store_true", help="leave a workspace directory that this worker made")
    where.add_argument(
        "-P",
        "--password",
        default=None,
        metavar="FILE",
        help=("file with the manager's secret or password (default: $VINE_PASSWORD_FILE, else the user's own secret file)"),
    )
    where.add_argument(
        "--no-authentication",
        action="store_true",
        help="join a manager that was started with auth=None; anybody on the network could be that manager",
    )
    where.add_argument("--ssl", action="store_true", help="encrypt the link; needed when the manager was started with ssl=")
    where.add_argument(
        "--tls-sni",
        default=None,
        metavar="NAME",
        help="name of the server told in the TLS handshake, if a proxy asks for it (implies --ssl)",
    )


def _add_times(parser: argparse.ArgumentParser) -> None:
    times = parser.add_argument_group("times, in seconds")
    times.add_argument(
        "-t", "--timeout", type=float, default=None, metavar="S", help="sets both --idle-timeout and --connect-timeout"
    )
    times.add_argument("--idle-timeout", type=float, default=None, metavar="S", help="leave after S without work (default 900)")
    times.add_argument(
        "--connect-timeout",
        type=float,
        default=None,
        metavar="S",
        help="give up after S without reaching a manager, or finding the secret file that it makes (default 900)",
    )
    times.add_argument(
        "-i",
        "--min-backoff",
        type=float,
        default=1.0,
        metavar="S",
        help="first pause between tries to connect; it doubles (default 1)",
    )
    times.add_argument(
        "-b", "--max-backoff", type=float, default=8.0, metavar="S", help="longest pause between tries to connect (default 8)"
    )
    times.add_argument("--single-shot", action="store_true", help="exit after the first disconnection")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"vine_worker {version('daskvine')}"
    except PackageNotFoundError:
        return "vine_worker (not installed)"


def parse_managers(words: list[str]) -> list[tuple[str, int]]:
    """Addresses out of ``HOST PORT`` or ``HOST:PORT[;HOST:PORT...]``.

    Raises:
        UsageError: a port is missing or no number from 1 to 65535, or a host's name can be nobody's.
    """
    texts = (
        [f"[{words[0]}]:{words[1]}" if ":" in words[0] else f"{words[0]}:{words[1]}"] if len(words) == 2 else words[0].split(";")
    )
    if len(words) > 2:
        raise UsageError(f"give HOST PORT or HOST:PORT, not {len(words)} words: {' '.join(words)}")
    found = []
    for text in filter(None, texts):
        # Long ports are not even read: Python refuses to.
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+)):0*([0-9]{1,5})", text.strip())
        if match is None or not 1 <= int(match[3]) <= 65535:
            raise UsageError(
                f"{shown(text)} is no HOST:PORT with a port from 1 to 65535 (write an IPv6 address as [ADDRESS]:PORT)"
            )
        host = match[1] or match[2]
        try:
            # As whoever looks it up does.
            host.encode("idna")
        except UnicodeError:
            raise UsageError(
                f"{shown(host)} is no name of a host: the parts between its dots have 1 to 63 characters each"
            ) from None
        found.append((host, int(match[3])))
    if not found:
        raise UsageError("no manager was named: give HOST PORT")
    return found


def _amount(flag: str, value: str | None) -> int | None:
    """A number of a resource; None for all or unset.

    Raises:
        UsageError: it is neither a whole number in its range nor 'all'.
    """
    name = f"--{flag}"
    if value is None:
        name, value = f"the environment variable {flag.upper()}", os.environ.get(flag.upper())
    if value is None or value == "all":
        return None
    least, most = _AMOUNTS[flag]
    # Long ones are not even read: Python refuses to.
    is_whole = value.isascii() and value.isdigit() and len(value.lstrip("0")) <= len(str(most))
    if not is_whole or not least <= int(value) <= most:
        raise UsageError(f"{name} takes a whole number from {least} to {most} or 'all', not {shown(value)}")
    return int(value)


def _check_times(options: argparse.Namespace) -> None:
    """Times that cannot be meant are refused.

    Raises:
        UsageError: one is negative or no number.
    """
    for name in ("timeout", "idle_timeout", "connect_timeout", "min_backoff", "max_backoff"):
        value = getattr(options, name)
        # A comparison that NaN fails too.
        if value is not None and not 0 <= value <= SECONDS_LIMIT:
            raise UsageError(f"--{name.replace('_', '-')} takes a number of seconds from 0 to {SECONDS_LIMIT}, not {value:g}")
    if options.max_backoff < options.min_backoff:
        raise UsageError(f"--max-backoff {options.max_backoff:g} is below --min-backoff {options.min_backoff:g}")


def _check_names(options: argparse.Namespace) -> None:
    """Empty names are refused: of files they would mean the current directory, of a server that none was given.

    Raises:
        UsageError: one is empty, or can be no server's.
    """
    if options.workspace == "":
        raise UsageError("--workspace takes the name of a directory, not '' (the current one is '.')")
    if options.password == "":
        raise UsageError("--password takes the name of a file, not '' (leave it out and the user's own secret file is used)")
    if options.tls_sni is not None:
        from vinecore.shell.worker_loop import is_server_name

        if not is_server_name(options.tls_sni):
            raise UsageError(f"--tls-sni takes the name of a server, not {shown(options.tls_sni)} (leave it out for none)")


def _secret(options: argparse.Namespace) -> bytes | None:
    if options.secret_fd >= 0:
        with open(options.secret_fd, "rb") as file:
            return file.read() or None
    if options.no_authentication:
        if options.password is not None:
            raise UsageError("--no-authentication and --password contradict each other: leave one of them out")
        return None
    from vinecore.shell.worker_loop import awaited_secret, secret_for_worker

    # A manager makes the default file, perhaps later: the loop waits for it, as it does for the manager.
    options.awaited_secret = awaited_secret(options.password)
    return None if options.awaited_secret else secret_for_worker(options.password)


def _note_signals() -> tuple[tuple[signal.Signals, ...], list[int]]:
    """Note what tells the worker to end, until there is one: importing it takes long enough for somebody to press Ctrl-C.

    Returns these signals, and the list to which those that come are added.
    """
    ends = list(_END_SIGNALS)
    # So nohup says that the worker is to outlive its terminal.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        ends.remove(signal.SIGHUP)
    noted: list[int] = []
    for number in ends:
        signal.signal(number, lambda number, frame: noted.append(number))
    return tuple(ends), noted


def _open_standard_streams() -> None:
    """Have something at 0, 1 and 2: else a socket or a slot's claims get such a number, and what programs print goes there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for as long as we live


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 well, 1 failed, 2 bad usage)."""
    end_signals, early_signals = _note_signals()
    _open_standard_streams()
    options = build_parser().parse_args(argv)
    options.awaited_secret = None
    from vinecore.shell.worker_loop import STDERR, WorkerConfig, WorkerLoop, count_gpus, say

    embedded = options.lifeline_fd >= 0
    idle = options.idle_timeout if options.idle_timeout is not None else options.timeout
    connect = options.connect_timeout if options.connect_timeout is not None else options.timeout
    try:
        _check_times(options)
        _check_names(options)
        gpus = _amount("gpus", options.gpus)
        config = WorkerConfig(
            managers=parse_managers(options.manager),
            cores=_amount("cores", options.cores) or 0,
            memory_mb=_amount("memory", options.memory) or 0,
            disk_mb=_amount("disk", options.disk) or 0,
            gpus=count_gpus(early_signals) if gpus is None else gpus,
            # After the sizes: what is wrong with the command line itself is told first.
            secret=_secret(options),
            awaited_secret=options.awaited_secret,
            features=options.feature,
            workspace=options.workspace,
            keep_workspace=options.keep_workspace,
            idle_timeout_s=900.0 if idle is None else idle,
            connect_timeout_s=900.0 if connect is None else connect,
            min_backoff_s=options.min_backoff,
            max_backoff_s=options.max_backoff,
            single_shot=options.single_shot,
            embedded=embedded,
            lifeline_fd=options.lifeline_fd,
            tls=options.ssl or options.tls_sni is not None,
            tls_name=options.tls_sni or "",
            debug=options.debug is not None,
            quiet=embedded,
            end_signals=end_signals,
            early_signals=early_signals,
        )
        loop = WorkerLoop(config)
    except (VineError, OSError) as error:
        say(STDERR, f"vine_worker: {error}")
        return 2 if isinstance(error, UsageError) else 1
    return loop.run()


if __name__ == "__main__":
    sys.exit(main())
