"""The door of the command line: whatever fails behind it is 3, and never Python's own 1.

A crash of Python exits with 1, which means WARN here. So nothing but what Python has loaded already
is imported before the door is shut: a package that is missing, a stream that is closed and a disk
that is full are met behind it.
"""

import os
import sys

_NOT_A_VERDICT = 3


def run() -> int:
    """Run the command line and return the exit code of the process.

    Returns
    -------
    int
        What :func:`safety_lib.__main__.main` says; 3 where it could not even say that.
    """
    code = _NOT_A_VERDICT
    try:
        _open_streams()
        from safety_lib.__main__ import main

        code = main()
    except BaseException as error:  # Ctrl-C while the packages load, memory that is out
        _say(f"error: {what_is_missing(error) or f'{type(error).__name__}: {error}'}")
    _ignore_ctrl_c()
    told = [_flushed(stream) for stream in (sys.stderr, sys.stdout)]
    return code if told[-1] else _NOT_A_VERDICT


def what_is_missing(error: BaseException) -> str:
    """Say which package could not be imported, whatever it raised; of other errors nothing.

    Parameters
    ----------
    error : BaseException
        What ended a command.

    Examples
    --------
    >>> what_is_missing(ModuleNotFoundError("No module named 'yaml'", name="yaml"))
    "the package yaml is missing or broken: No module named 'yaml'; `pip install` it, or run `make`"
    >>> what_is_missing(ValueError("no such version"))
    ''
    """
    package = _package_that_fails(error)
    if not package:
        return ""
    said = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    return f"the package {package} is missing or broken: {said}; `pip install` it, or run `make`"


def _package_that_fails(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    ours = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib may be it
    if isinstance(error, SyntaxError) and not str(error.filename).startswith(ours):
        return os.path.basename(str(error.filename)).partition(".")[0]  # noqa: PTH119
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_name == "<module>" and not code.co_filename.startswith(ours):
            return str(step.tb_frame.f_globals.get("__name__")).partition(".")[0]
        step = step.tb_next
    return (error.name or "of a name") if isinstance(error, ImportError) else ""


def _ignore_ctrl_c() -> None:
    """Let nobody interrupt what Python does on its way out: all is said and written."""
    try:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException:  # noqa: S110 - it came just now
        pass


def _open_streams() -> None:
    """Give a stream that is closed somewhere to write: the next file would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _say(line: str) -> None:
    try:  # noqa: SIM105 - contextlib is not loaded yet
        sys.stderr.write(" ".join(line.split()) + "\n")
    except Exception:  # noqa: S110 - there is nobody left to tell
        pass


def _flushed(stream: object) -> bool:
    """Write what waits in a stream; where that fails Python's own attempt at the end must not."""
    try:
        stream.flush()  # type: ignore[attr-defined]
        return True
    except Exception:
        _let_go(stream)
        return False


def _let_go(stream: object) -> None:
    try:  # noqa: SIM105 - as above
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
    except Exception:  # noqa: S110 - it has no number, so Python has nothing to write either
        pass
