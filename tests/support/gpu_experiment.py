"""The files of experiments/gpu, imported by name."""

import contextlib
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments" / "gpu"


@contextlib.contextmanager
def importing():
    """Yield a function that imports a file of the experiment, without leaving its generic names to other tests."""
    sys.path.insert(0, str(FOLDER))
    known = set(sys.modules)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - known:
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
