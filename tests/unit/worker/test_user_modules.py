"""The user's own modules, edited while a session lives."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ddp_magic.worker.user_modules import UserModules, imported_since

OLD = "SIZE = 1\ndef f(): return 'old'\nclass A:\n    def g(self): return 'old'\n"
NEW = "SIZE = 22\ndef f(): return 'newer'\nclass A:\n    def g(self): return 'newer'\nx = 1\n"

Make = Callable[[str, str], ModuleType]


@pytest.fixture
def modules() -> UserModules:
    return UserModules(next(reversed(sys.modules)))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Writes a module of the user's own and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> ModuleType:
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def _write(module: ModuleType, source: str) -> None:
    assert module.__file__ is not None
    Path(module.__file__).write_text(source)


def test_what_was_imported_since(make: Make) -> None:
    """The oldest first, and nothing from before."""
    before = next(reversed(sys.modules))
    first, second = make("own_first", ""), make("own_second", "")
    assert imported_since(before) == {"own_first": first, "own_second": second}
    assert list(imported_since(before)) == ["own_first", "own_second"]
    assert imported_since("own_second") == {}


def test_an_edited_module_is_reloaded(modules: UserModules, make: Make) -> None:
    """Its functions, classes and constants, those that were imported from it, and its objects."""
    helper = make("own_helper", OLD)
    f, obj = helper.f, helper.A()
    modules.record()
    assert modules.reload_edited() == []
    _write(helper, NEW)
    assert modules.reload_edited() == ["own_helper has changed: the session has reloaded it"]
    assert (helper.SIZE, helper.f(), f(), obj.g(), helper.x) == (22, "newer", "newer", "newer", 1)
    assert modules.reload_edited() == []


def test_a_module_of_a_package_and_who_imports_from_it(modules: UserModules, make: Make) -> None:
    """What is imported by another one comes first."""
    part = make("own_pack.part", "def f(): return 'old'")
    user = make("own_user", "from own_pack.part import f\nvalue = f()")
    modules.record()
    _write(part, "def f(): return 'newer'")
    _write(user, "from own_pack.part import f\nvalue = f()\n# edited")
    assert len(modules.reload_edited()) == 2
    assert user.value == "newer"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(: pass", "SyntaxError"),
        ("del SIZE\nraise SystemExit(3)", "NameError"),
        ("import sys\nsys.exit('no')", "SystemExit: no"),
    ],
)
def test_one_that_cannot_be_read(modules: UserModules, make: Make, source: str, words: str) -> None:
    """The session keeps what it has, and says it once; the next edit counts."""
    helper = make("own_broken", OLD)
    modules.record()
    _write(helper, source)
    (line,) = modules.reload_edited()
    assert line.startswith("own_broken has changed: the session keeps the version it has")
    assert words in line
    assert (helper.f(), helper.SIZE) == ("old", 1)
    assert modules.reload_edited() == []
    _write(helper, NEW)
    assert len(modules.reload_edited()) == 1
    assert helper.f() == "newer"


def test_what_is_gone_and_what_is_not_the_users(modules: UserModules, make: Make) -> None:
    """A deleted file, a module that the cell has removed, the standard library."""
    import colorsys  # noqa: F401 -- imported, and not the user's

    gone, removed = make("own_gone", OLD), make("own_removed", OLD)
    modules.record()
    assert set(modules._files) == {"own_gone", "own_removed"}
    assert gone.__file__ is not None
    Path(gone.__file__).unlink()
    del sys.modules["own_removed"]
    _write(removed, NEW)
    assert modules.reload_edited() == []
    assert gone.f() == "old"


def test_one_that_is_only_saved(modules: UserModules, make: Make) -> None:
    """Its text is the same: what it holds stays."""
    helper = make("own_saved", "cache = {}\n")
    helper.cache["a"] = 1
    modules.record()
    _write(helper, "cache = {}\n")
    assert modules.reload_edited() == []
    assert helper.cache == {"a": 1}
    _write(helper, "cache = {}\n# edited\n")
    assert len(modules.reload_edited()) == 1
