#!/usr/bin/env python3
"""A library in a program of its own, for tests: it answers calls through the protocol of libraries made from commands."""

import argparse
import fcntl
import itertools
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback


def double(x):
    return 2 * x


def join(*words, sep=" "):
    print("joining", sep)
    return sep.join(words)


def size_of(data):
    return len(data)


def zeros(size):
    return bytes(size)


def who():
    return os.getpid(), os.getppid()


def sockets():
    """Those that this program has."""
    links = [os.readlink(f"/proc/{os.getppid()}/fd/{number}") for number in os.listdir(f"/proc/{os.getppid()}/fd")]
    return [link for link in links if link.startswith("socket:")]


def wait_for(path):
    """Say that the call runs, then wait for a file; ends by itself after half a minute."""
    import pathlib

    pathlib.Path(f"{path}-{os.getpid()}").touch()
    for _ in range(15000):
        if os.path.exists(path):
            return True
        time.sleep(0.002)
    raise RuntimeError("the file never came")


def fail():
    raise KeyError("no such luck")


def leave_nothing():
    print("about to leave")
    sys.stdout.flush()
    os._exit(7)


def leave_pipes():
    for name in ("outfile", ".vine.stdout"):
        if os.path.exists(name):
            os.unlink(name)
        os.mkfifo(name)
    os._exit(0)


def leave_file(content):
    """A result of these bytes, whatever they are."""
    print("leaving bytes")
    sys.stdout.flush()
    with open("outfile", "wb") as file:
        file.write(content)
    os._exit(0)


def answer_with(data):
    """Write this where answers are expected, and no answer after it."""
    os.write(int(os.environ["TEST_PROGRAM_ANSWERS"]), data)
    time.sleep(600)


def say_more(data):
    """Have this written together with the answer."""
    with open("more", "wb") as file:
        file.write(data)


def say_later(data, gate):
    """Have this written once there is this file; it is removed then."""
    if os.fork() == 0:
        wait_for(gate)
        os.write(int(os.environ["TEST_PROGRAM_ANSWERS"]), data)
        os.unlink(gate)
        os._exit(0)


def remove_around():
    """Remove the directory in which the calls of this slot have theirs."""
    import shutil

    shutil.rmtree(os.path.dirname(os.getcwd()))
    os._exit(0)


def link_in_place(target):
    """A link stands where the private directory was."""
    here = os.getcwd()
    os.rename(here, here + ".aside")
    os.symlink(target, here)


def link_around(target):
    """A link stands where the directory of this slot's calls was; where it leads is something of the same name."""
    here = os.getcwd()
    around = os.path.dirname(here)
    os.makedirs(os.path.join(target, os.path.basename(here), "below"))
    os.rename(around, around + ".aside")
    os.symlink(target, around)


def say(words, times):
    """On the standard error of the program, and on that of the call."""
    os.write(int(os.environ["TEST_PROGRAM_STDERR"]), words.encode() * times)
    print(words * times)


def kill_program():
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)


def live_on_and_kill_program():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def say_and_kill_program(words, times):
    os.write(int(os.environ["TEST_PROGRAM_STDERR"]), words.encode() * times)
    kill_program()


def read_message(fd):
    head = b""
    while not head.endswith(b"\n"):
        character = os.read(fd, 1)
        if not character:
            sys.exit(0)
        head += character
    return os.read(fd, int(head))


def write_message(fd, data, pid, more=b""):
    os.write(fd, b"%d\n%s%s" % (len(data), data, more))
    os.kill(pid, signal.SIGCHLD)


def run(name, sandbox, output):
    """In a child: one call, its result in a file."""
    os.chdir(sandbox)
    fd = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    function = globals().get(name)
    if function is None:
        os._exit(2)
    with open("infile", "rb") as file:
        event = pickle.load(file)
    try:
        result = {"Result": function(*event["fn_args"], **event["fn_kwargs"]), "Success": True, "Reason": None}
    except Exception:
        result = {"Result": None, "Success": False, "Reason": traceback.format_exc()}
    with open("outfile", "wb") as file:
        pickle.dump(result, file)
    sys.stdout.flush()
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    for name in ("in-pipe-fd", "out-pipe-fd", "task-id", "library-cores", "function-slots", "worker-pid"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    manner = os.environ.get("TEST_PROGRAM_START", "")
    if manner == "exit":
        print("no licence: ask your administrator", file=sys.stderr)
        sys.exit(3)
    if manner.startswith("lock "):
        # One program at a time gets past this.
        fcntl.flock(os.open(manner[5:], os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
    if manner.startswith("try "):
        # Only the first program gets past this.
        try:
            fcntl.flock(os.open(manner[4:], os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for number in itertools.count():
                try:
                    os.close(os.open(f"{manner[4:]}-{number}", os.O_CREAT | os.O_EXCL))
                    break
                except FileExistsError:
                    continue
            sys.exit("all licences are in use")
    if manner == "leave":
        # What this starts keeps the standard error, and no other pipe.
        if os.fork() == 0:
            os.close(options.in_pipe_fd)
            os.close(options.out_pipe_fd)
            time.sleep(600)
            os._exit(0)
        print("left early", file=sys.stderr)
        sys.exit(4)
    # Of the program itself: calls have their own.
    os.environ["TEST_PROGRAM_STDERR"] = str(os.dup(2))
    os.environ["TEST_PROGRAM_ANSWERS"] = str(options.out_pipe_fd)
    if manner == "chatter":
        print("hello there")
        os.write(options.out_pipe_fd, b"hello there\n")
        read_message(options.in_pipe_fd)
    with open("name.txt") as file:
        library = file.read().strip()
    about = {"name": library, "taskid": options.task_id, "exec_mode": "fork"}
    more = b"and more" if manner == "talk on" else b""
    write_message(options.out_pipe_fd, json.dumps(about).encode(), options.worker_pid, more)
    if manner.startswith("mark "):
        open(os.path.join(manner[5:], str(os.getpid())), "w").close()
    answered = False
    while True:
        if manner == "never" or (manner == "once" and answered):
            # There is a call for it, which it leaves unread.
            select.select([options.in_pipe_fd], [], [])
            sys.exit(5)
        number, name, sandbox, output = read_message(options.in_pipe_fd).decode().split()
        pid = os.fork()
        if pid == 0:
            run(name, sandbox, output)
        _, status = os.waitpid(pid, 0)
        more = b""
        if os.path.exists(f"{sandbox}/more"):
            with open(f"{sandbox}/more", "rb") as file:
                more = file.read()
        answered = True
        write_message(options.out_pipe_fd, b"%s %d" % (number.encode(), status), options.worker_pid, more)


if __name__ == "__main__":
    main()
