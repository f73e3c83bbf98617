#!/usr/bin/env python3
"""A library in a program of its own: it loads a table once, then answers calls through two pipes.

``../library_from_command.py`` sends it to the workers and calls it. It needs Python's standard library only: a program that
speaks this protocol may be written in any language that can read and write pickles.
"""

import argparse
import json
import os
import pickle
import signal
import sys
import traceback

TABLE = [number * number for number in range(1000)]


def square(number):
    return TABLE[number]


def total(first, last, step=1):
    return sum(TABLE[first:last:step])


FUNCTIONS = {"square": square, "total": total}


def receive(fd):
    """One message: a line with its length, then so many bytes. The end of the pipe is the end of the program."""
    head = b""
    while not head.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            sys.exit(0)
        head += byte
    return os.read(fd, int(head))


def send(fd, data, worker):
    os.write(fd, b"%d\n%s" % (len(data), data))
    os.kill(worker, signal.SIGCHLD)


def answer(name, sandbox):
    """Run one function; its arguments and its result are files of the call's directory. Returns the exit status to report."""
    with open(f"{sandbox}/infile", "rb") as file:
        event = pickle.load(file)
    try:
        value = FUNCTIONS[name](*event["fn_args"], **event["fn_kwargs"])
        result = {"Result": value, "Success": True, "Reason": None}
    except Exception:
        result = {"Result": None, "Success": False, "Reason": traceback.format_exc()}
    with open(f"{sandbox}/outfile", "wb") as file:
        pickle.dump(result, file)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("in-pipe-fd", "out-pipe-fd", "task-id", "library-cores", "function-slots", "worker-pid"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    about = {"name": "squares", "taskid": options.task_id, "exec_mode": "direct"}
    send(options.out_pipe_fd, json.dumps(about).encode(), options.worker_pid)
    while True:
        task_id, name, sandbox, _output = receive(options.in_pipe_fd).decode().split()
        status = answer(name, sandbox)
        send(options.out_pipe_fd, f"{task_id} {status}".encode(), options.worker_pid)


if __name__ == "__main__":
    main()
