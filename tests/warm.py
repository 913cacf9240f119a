"""Python processes that are forked from one that has imported all already: 20 ms of work instead of 250.

Tests start thousands of workers and commands. `WarmPopen` is a `subprocess.Popen` whose Python commands are
run by a fork of a process that is kept ready, one for each process that starts any; they are children of who
started them as ever, with the arguments, environment, folder and files that were asked for. What is asked of
it besides (a terminal, other programs, options of Python's) is run as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import json
import os
import pkgutil
import platform
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

CLONE_PARENT = 0x8000
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine()) if sys.platform == "linux" else None
_LARGEST = 150_000  # bytes of a request, within what a socket's buffer takes
_MOST_FILES = 16
_NAME = "warm"
_ANSWERS_WITHIN = 60.0  # seconds, the first time with all that is imported
_HIGH = 500  # file descriptors from here on are none that a command asked for
_CHILD = "respool.worker.child"
_STARTS_MORE = re.compile(r"worker|demo|\.py")  # in commands that start workers
_KEPT = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}  # `_become` looks at them
_LATCHED = ("PYTHON", "LD_", "LC_", "LANG")  # how those begin that are looked at when a program is started
_bind = inspect.signature(subprocess.Popen._execute_child).bind  # type: ignore[attr-defined]
_lock = threading.Lock()
_server: socket.socket | None = None
_server_of = 0  # the process that the server is for: one that was forked from it has none yet
_process: subprocess.Popen[bytes] | None = None


class Request(NamedTuple):
    """A process to be made; its files come with the message, in the order of their numbers there."""

    command: list[str]  # what follows the program: -c code, -m module or a file, with arguments
    env: dict[str, str]
    folder: str
    session: bool
    files: list[int]


class WarmPopen(subprocess.Popen):
    """A process as `subprocess.Popen` makes it; one of Python's is forked, not started."""

    def _execute_child(self, *given: Any, **named: Any) -> None:
        asked = _bind(self, *given, **named).arguments
        request = _request(asked)
        if request is None or (pid := _ask(request, asked)) is None:
            super()._execute_child(*given, **named)  # type: ignore[misc]
            return
        self.pid = pid
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[end] for end in ends))  # type: ignore[attr-defined]


def run(
    command: list[Any], *, timeout: float, check: bool = False, capture_output: bool = False, **more: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a command to its end, as `subprocess.run` does."""
    if capture_output:
        more["stdout"] = more["stderr"] = subprocess.PIPE
    with WarmPopen(command, **more) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _request(asked: dict[str, Any]) -> Request | None:
    """Return what to ask the server for; None for what only a program that is started can do."""
    args, flags = asked["args"], subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if _CLONE is None or not isinstance(args, list):
        return None
    program, *rest = [os.fspath(each) for each in args]
    if rest[: len(flags)] == flags:
        rest = rest[len(flags) :]
    python = bool(rest[1:] and rest[0] in ("-c", "-m")) or bool(rest and rest[0].endswith(".py"))
    if program != sys.executable or not python:
        return None
    plain = {"executable": None, "preexec_fn": None, "shell": False, "uid": None, "gid": None, "gids": None}
    if any(asked.get(name, usual) != usual for name, usual in plain.items()) or not asked["close_fds"]:
        return None
    env = dict(os.environ if asked["env"] is None else asked["env"])
    set_anew = {name for name in env if env[name] != os.environ.get(name)} - _KEPT
    if any(name.startswith(_LATCHED) for name in set_anew):
        return None
    files = [0, 1, 2, *sorted(asked["pass_fds"])]
    folder = os.fspath(asked["cwd"] or os.getcwd())
    return Request(rest, env, folder, asked["start_new_session"], files)


def _ask(request: Request, asked: dict[str, Any]) -> int | None:
    """Have a process made; return its number, None where that cannot be."""
    ends = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
    files = [number if end == -1 else end for number, end in enumerate(ends)] + request.files[3:]
    message = json.dumps(request).encode()
    if len(message) > _LARGEST or len(files) > _MOST_FILES or max(request.files) >= _HIGH:
        return None
    with _lock:
        server = _server if _server_of == os.getpid() else _start()
        try:
            socket.send_fds(server, [message], files)
            answer = server.recv(16)
        except (BrokenPipeError, ConnectionResetError):
            return None  # it was killed with the group that it is in
    return int(answer) if answer and int(answer) > 0 else None


def _start() -> socket.socket:
    """Start the server of this process, by starting Python."""
    global _process
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _sources()},
        )
    _keep(ours)
    return ours


def _keep(server: socket.socket) -> None:
    global _server, _server_of
    server.settimeout(_ANSWERS_WITHIN)
    _server, _server_of = server, os.getpid()


def _sources() -> str:
    import respool

    return str(Path(respool.__file__).parents[1])


# In the server


def _serve(control: socket.socket) -> tuple[Request, list[int]]:
    """Make processes until there is nobody to ask for any; return in those that are made, what to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they may be sent to the group of who asks
    gc.collect()
    gc.freeze()  # so that memory stays shared
    _name(_NAME)
    while True:
        message, files, _, _ = socket.recv_fds(control, _LARGEST, _MOST_FILES)
        if not message:
            os._exit(0)
        pid = _fork_beside()
        if pid == 0:
            control.close()
            _name("python")
            return Request(*json.loads(message)), files
        for file in files:
            os.close(file)
        control.send(str(pid).encode())


def is_server(pid: int) -> bool:
    """Say whether a process is one that forks others, rather than one that was asked for."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("ascii").strip() == _NAME
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def _name(name: str) -> None:
    """Set this process's name, which `ps -o comm` shows."""
    Path("/proc/self/comm").write_text(name, "ascii")


def _fork_beside() -> int:
    """Fork a child of our parent's; return as `os.fork` does, below zero for a failure."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None).syscall(_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


def _become(request: Request, files: list[int]) -> None:
    """Make of this process what a start of Python would have made."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if request.session:
        os.setsid()
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, _HIGH) for file in files]
    os.closerange(3, _HIGH)
    for file, number in zip(high, request.files, strict=True):
        os.dup2(file, number)
    os.closerange(_HIGH, max(high) + 1)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.folder)
    time.tzset()
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in request.env
    how = request.command[0]
    first = "" if how == "-c" else os.getcwd() if how == "-m" else os.path.dirname(os.path.abspath(how))
    sys.path[:] = [first, *filter(None, request.env.get("PYTHONPATH", "").split(os.pathsep)), *_PATH]
    sys.path_importer_cache.clear()
    unbuffered = "PYTHONUNBUFFERED" in request.env
    sys.stdin = sys.__stdin__ = _text(sys.stdin, "r", False)
    sys.stdout = sys.__stdout__ = _text(sys.stdout, "w", unbuffered)
    sys.stderr = sys.__stderr__ = _text(sys.stderr, "w", True)


def _text(like: Any, mode: str, through: bool) -> io.TextIOWrapper:
    """Open a standard file anew, which is another than the one that Python started with."""
    file: int = like.fileno()
    raw = open(file, mode + "b", -1 if mode == "r" or not through else 0, closefd=False)  # noqa: SIM115
    lines = file == 2 or os.isatty(file)
    return io.TextIOWrapper(raw, like.encoding, like.errors, write_through=through, line_buffering=lines)


def _run(command: list[str]) -> None:
    if command[0] == "-m":
        _, module, *sys.argv[1:] = command
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        _, code, *sys.argv[1:] = command
        sys.argv[0] = "-c"
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = command
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = command[0]
        exec(compile(Path(command[0]).read_bytes(), command[0], "exec"), main.__dict__)


def _fork_server() -> None:
    """Give this process a server of its own before it does anything, for the processes that it starts."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _work_in(theirs)
    theirs.close()
    _keep(ours)
    subprocess.Popen = WarmPopen  # type: ignore[misc]


def _work_in(control: socket.socket) -> None:
    """Serve; each process that is made goes on here."""
    request, files = _serve(control)
    _become(request, files)
    if _CHILD not in request.command and any(map(_STARTS_MORE.search, request.command)):
        _fork_server()
    _run(request.command)
    sys.exit(0)


def _import_all() -> None:
    import respool

    for module in pkgutil.walk_packages(respool.__path__, "respool."):
        if not module.name.endswith("__main__") and "demo" not in module.name:  # it makes an app
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)


_PATH: list[str] = []

if __name__ == "__main__":
    sys.modules["tests.warm"] = sys.modules["__main__"]
    _PATH[:] = [*sys.path[2:], sys.path[1]]  # the sources last, as where the package is installed
    _import_all()
    _work_in(socket.socket(fileno=int(sys.argv[1])))
