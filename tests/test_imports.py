"""The arrow: a module imports only from modules before it, and importing does next to nothing."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "myna"
ARROW = """
    errors progress disk lock device audio track audioset mel store part prepare patch noise pair mask view relative vit
    model mae rank contrast loss checkpoint release hub step reconstruction run plan train arrays recipe
    key embedder task.base task.files task.archive task.download
    task.magnatagatune task.gtzan task.giantsteps task.emomusic task.custom task
    metric bootstrap problem grid cohort schedule probe
    library baseline huggingface precomputed peer cache evaluate quoted board listener marble hear export
    about doctor plot score timbre songs report question exam demo
    figure sweep reproduce cli.base cli.learn cli.use cli.judge cli.tell cli __main__
""".split()  # noqa: SIM905 (a list of words, read as one)
# optional extras may be imported where they are used; __init__ loads PyTorch only when asked
LATE = {("run", "torch.utils.tensorboard"), ("__init__", "myna.embedder"), ("huggingface", "transformers")}


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.module == "myna":
            return [f"myna.{alias.name}" for alias in node.names]
        parts = [f"{node.module}.{alias.name}" for alias in node.names]
        if all(part.removeprefix("myna.") in modules() for part in parts):  # modules of a package of ours
            return parts
        return [node.module or ""]
    return []


def test_every_module_has_its_place():
    assert sorted(ARROW) == sorted(modules().keys() - {"__init__"})


@pytest.mark.parametrize("name", ARROW)
def test_modules_import_only_from_before_them(name):
    tree = modules()[name]
    ours = [
        what.removeprefix("myna.") for node in ast.walk(tree) for what in imported(node) if what.startswith("myna.")
    ]
    before = [*ARROW[: ARROW.index(name)], "__version__"]
    assert [other for other in ours if other not in before] == []


@pytest.mark.parametrize("name", ARROW)
def test_imports_stand_at_the_top(name):
    late = [
        what
        for function in ast.walk(modules()[name])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        for what in imported(node)
        if (name, what) not in LATE
    ]
    assert late == []


def test_every_module_says_what_it_is():
    assert [name for name, tree in modules().items() if not ast.get_docstring(tree)] == []


def test_importing_the_package_loads_no_torch_and_sets_nothing_up():
    code = (
        "import sys, logging, warnings; filters = list(warnings.filters); import myna; "
        "assert 'torch' not in sys.modules; assert not logging.root.handlers; assert warnings.filters == filters; "
        "assert myna.__version__; print('fine')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "fine\n"


def test_training_needs_no_audio_library():
    """A machine that only trains, such as a rented GPU, needs neither PyAV nor soxr."""
    code = (
        "import sys\n"
        "for name in ('av', 'soxr', 'sklearn', 'openTSNE', 'mir_eval', 'cyclopts'): sys.modules[name] = None\n"
        "import myna.train, myna.recipe; print('fine')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "fine\n", ran.stderr


def test_nothing_forbidden_is_in_the_dependency_tree():
    project = SOURCE.parents[1]
    for file in ("pyproject.toml", "constraints.txt"):
        lines = [line.split("#")[0] for line in (project / file).read_text().splitlines()]
        text = "\n".join(lines).lower()
        for name in ("torchvision", "torchaudio", "timm", "vit-pytorch", "lightly"):
            assert name not in text
        assert "://" not in text
