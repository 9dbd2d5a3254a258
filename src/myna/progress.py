"""How far long work is, on stderr: a bar on a terminal, else a plain line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY_S = 10.0


class Bar:
    """One piece of work with a name: `with Bar("embed", "tracks") as bar: bar(done, total, "3 failed")`."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[told]}", markup=False),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, told="", total=None)
        self.began = self.spoke = time.monotonic()
        self.first: int | None = None

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, told: str = "", *, left_s: float | None = None) -> None:
        """Tell that `done` of `total` are through; the time left is taken from the pace unless it is given."""
        now = time.monotonic()
        if self.first is None:
            self.first = done if done < total else 0  # what a resumed run found done says nothing of the pace
        if left_s is None and done > self.first:
            left_s = (now - self.began) / (done - self.first) * (total - done)
        parts = [f"{done}/{total} {self.unit}", told, "" if left_s is None else f"{clock(left_s)} left"]
        line = ", ".join(part for part in parts if part)
        self.bar.update(self.task, completed=done, total=total, told=line)
        if not self.console.is_terminal and (done == total or now - self.spoke >= PLAIN_EVERY_S):
            self.console.print(f"{self.name}: {line}", highlight=False, soft_wrap=True, markup=False)
            self.spoke = now


class Stages:
    """The two stages of an evaluation, each with a bar of its own: `with Stages("runs/a on gtzan") as stages`."""

    def __init__(self, of: str) -> None:
        self.of, self.bar, self.name = of, None, ""

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.__exit__()

    def embedded(self, done: int, items: int, failed: int) -> None:
        self._bar("embed", "items")(done, items, f"{self.of}, {failed} failed")

    def probed(self, step: int, stopped: int, probes: int) -> None:
        """Tell of a search; a step 0 begins the next one, as of another representation or seed."""
        self._bar("probe", "probes", fresh=step == 0)(stopped, probes, f"{self.of}, step {step}")

    def _bar(self, name: str, unit: str, *, fresh: bool = False) -> Bar:
        if self.bar is None or name != self.name or fresh:
            self.__exit__()
            self.bar, self.name = Bar(name, unit).__enter__(), name
        return self.bar


def clock(seconds: float) -> str:
    """Write a duration as 0:07, 3:20, 2:05:00 or 4 days 3 h."""
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, minutes, left = rest // 3600, rest // 60 % 60, rest % 60
    if days:
        return f"{days} days {hours} h"
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
