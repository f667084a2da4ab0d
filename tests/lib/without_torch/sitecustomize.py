"""Hide torch from a process, as most users have none: transformers would import it for seconds."""

import importlib.machinery
import sys


class WithoutTorch(importlib.machinery.PathFinder):
    """Finds every module but one."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """None for torch: there is no such module."""
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


sys.meta_path = [
    WithoutTorch if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
]
