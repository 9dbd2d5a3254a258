"""The command line: one verb an arrow. Parse, call, print.

Data goes to stdout, progress and messages to stderr. Exit status: 0 well; 1 the user's error, in one sentence;
3 finished, but some files could not be used; 130 stopped, and can go on.
"""

import signal
import sys
import threading

from cyclopts import CycloptsError

from myna.cli import judge, learn, tell, use
from myna.cli.base import EXIT_STOPPED, EXIT_USER, app, err
from myna.errors import MynaError

__all__ = ["judge", "learn", "main", "tell", "use"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
    try:
        sys.exit(app(arguments, exit_on_error=False, print_error=False) or 0)
    except (MynaError, CycloptsError) as error:
        _complain(str(error))
        sys.exit(EXIT_USER)
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "Stopped. Run the same command again to go on.")
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader, such as `head`, has seen enough
            return
        _complain(f"{error.filename or 'A file'} could not be read or written: {error.strerror or error}.")
        sys.exit(EXIT_USER)


def _complain(message: str) -> None:
    err.print(f"myna: {message}")
