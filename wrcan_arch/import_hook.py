"""Call functions before and after the first import of another package, whoever imports it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Loader(Loader):
    """Calls `before` and `after` around a module's own loader."""

    def __init__(self, spec: ModuleSpec, loader: Loader, before: Callable[[], None], after: Callable[[], None]) -> None:
        self.spec, self.loader, self.before, self.after = spec, loader, before, after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.spec.loader = module.__loader__ = self.loader  # pkgutil.get_data needs it
        self.before()
        self.loader.exec_module(module)
        self.after()


class _Finder(MetaPathFinder):
    def __init__(self, name: str, before: Callable[[], None], after: Callable[[], None]) -> None:
        self.name, self.before, self.after = name, before, after

    def finish(self) -> None:
        self.after()
        sys.meta_path.remove(self)  # reloads are not hooked

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)  # so that the other finders find it
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # stays until an import succeeds
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec, spec.loader, self.before, self.finish)
        return spec


def when_imported(name: str, *, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` and `after` around the first import of the package `name`; at once if it is imported already."""
    if name in sys.modules:
        before()
        after()
    else:
        sys.meta_path.insert(0, _Finder(name, before, after))
