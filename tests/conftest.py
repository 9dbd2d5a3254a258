"""Shapes are checked while the tests run: every annotated function of the package is."""

from jaxtyping import install_import_hook

# before any test imports the package
install_import_hook("myna", "checker.check")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # sums in the same order, and no fight over cores
