"""``fastrnn run``: another program, with torch patched; needs no package of the extra [tasks]."""

from __future__ import annotations

import builtins
import contextlib
import runpy
import sys
import types
from pathlib import Path
from types import TracebackType

USAGE = "expected a script, or -m and a module: fastrnn run SCRIPT [ARGS...]"


def execute(arguments: list[str]) -> int:
    """Runs a program as Python does, under :func:`fastrnn.patch_torch`; its exit status.

    Its sys.argv, sys.path, __main__ and tracebacks are those that it would have without us.

    Args:
        arguments: [-m] and a script, a folder or archive with a __main__.py, or a module's name;
            then the program's own.
    """
    as_module = arguments[:1] == ["-m"]
    arguments = arguments[as_module:]
    if not arguments or arguments[0].startswith("-"):
        print(f"fastrnn: run: {USAGE}", file=sys.stderr)
        return 2
    name = arguments[0]
    path = Path(name).absolute()
    if not as_module and not path.exists():
        print(f"fastrnn: run: can't open file {name!r}: No such file", file=sys.stderr)
        return 2
    import fastrnn  # takes a second or two

    fastrnn.patch_torch()
    sys.argv = arguments
    try:
        if as_module:
            sys.path[0] = str(Path.cwd())
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        elif path.is_dir() or path.suffix in (".zip", ".pyz"):
            del sys.path[0]  # runpy puts the program's own in its place
            runpy.run_path(str(path), run_name="__main__")
        else:
            sys.path[0] = str(path.resolve().parent)
            _run_script(path)
    except Exception as error:
        trace = _without_ours(error.__traceback__)
        if as_module and trace is None and isinstance(error, ImportError):
            print(f"fastrnn: run: {error}", file=sys.stderr)
        else:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def _run_script(path: Path) -> None:
    # Not runpy.run_path, which takes __main__ away before threads and exit handlers have ended.
    main = types.ModuleType("__main__")
    vars(main).update(__file__=str(path), __builtins__=builtins)
    sys.modules["__main__"] = main
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(main))


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the program's first frame on; None if the program never started."""
    ours = {__file__, runpy.__file__, "<frozen runpy>"}
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename in ours:
        first = first.tb_next
    return first


def main(arguments: list[str]) -> None:
    """``fastrnn run`` with its arguments; leaves by sys.exit, as the program would."""
    status = execute(arguments)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(status)
