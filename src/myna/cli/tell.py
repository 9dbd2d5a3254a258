"""What is there: info, errors, doctor."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from myna import doctor
from myna.about import as_json, describe, failures
from myna.cli.base import app, err, print_facts


@app.command
def info(path: Path, /, *, as_json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Say what a store, run, model, weights file of the original release or library is."""
    kind, facts = describe(path)
    if as_json_:
        print(json.dumps(as_json(kind, facts)))
    else:
        print_facts({kind: str(path), **facts})
    return 0


@app.command
def errors(path: Path, /) -> int:
    """List the files that a store or a library could not use, with the reason: one a line, parted by a tab."""
    found = failures(path)
    for failed, reason in found:
        print(f"{failed}\t{reason}")
    if not found:
        err.print("No file failed.")
    return 0


@app.command(name="doctor")
def show_doctor() -> int:
    """Print versions, devices and codecs, and check the speed of this machine for three seconds."""
    print_facts(doctor.examine())
    return 0
