"""What all commands share: the application, where they speak, how they end."""

import importlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from myna import __version__
from myna.errors import ConfigError

EXIT_USER, EXIT_SOME_FAILED, EXIT_STOPPED = 1, 3, 130

app = App(
    name="myna",
    help="Self-supervised music representations that anyone can train on one machine, and use.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
Out = Annotated[Path, Parameter(name=["--out", "-o"])]


def some_failed(count: int, out: Path) -> int:
    if count:
        err.print(f"{count} files could not be used; see why with: myna errors {out}")
    return EXIT_SOME_FAILED if count else 0


def extra(name: str, extra: str | None = None) -> Any:
    try:
        return importlib.import_module(f"myna.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`myna {name}` needs {error.name}, which is not installed: pip install 'myna-music[{extra or name}]'."
        ) from error


def print_facts(facts: dict[str, str]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
