"""The rooms and arrows of DESIGN.md section 4, read from the source of every module."""

import ast
from pathlib import Path

import pytest

import jano_dist

PACKAGE = Path(jano_dist.__file__).parent
NAME = "jano_dist"

# Room -> the rooms it may import besides itself and `errors`. A new room gets a line here and in DESIGN.
# `__init__` is the package itself, for names that it offers.
ALLOWED = {
    "errors": set(),
    "config": set(),
    "geometry": set(),
    "target": set(),
    "observe": set(),
    "video": set(),
    "report": set(),
    "quality": set(),
    "media": {"target", "video"},
    "comparison": {"media", "quality", "target"},
    "doctor": {"attention", "observe"},
    "tokens": set(),
    "gang": {"observe"},
    "runtime": {"config", "gang", "watch"},
    "watch": {"gang"},
    "snapshot": {"target"},
    "texts": set(),
    "batch": {"config", "snapshot", "target"},
    "degrees": {"config"},
    "groups": {"degrees"},
    "clock": set(),
    "turns": set(),
    "mesh": {"clock", "degrees", "groups"},
    "policies": {"reuse", "tokens"},
    "reuse": {"cache", "mesh"},
    "picture": set(),
    "pinned": set(),
    "cache": {"pinned", "tokens"},
    "alike": {"mesh"},
    "attention": {"cache", "config", "geometry", "mesh"},
    "models": {"attention", "geometry", "tokens", "mesh", "cache", "picture", "pinned", "reuse"},
    "account": {
        "attention", "config", "degrees", "geometry", "groups", "models", "observe", "pinned", "sampling",
        "tokens",
    },
    "telemetry": {"mesh"},
    "trace": {"clock", "mesh", "observe"},
    "metrics": set(),
    "libraries": set(),
    "preflight": {"account", "attention", "config", "models", "policies", "runtime"},
    "launchers": {"batch", "config", "gang", "libraries", "snapshot", "watch"},
    "sampling": {"mesh"},
    "forwards": {"attention", "cache", "config", "mesh", "models", "sampling", "tokens", "turns"},
    "denoise": {"snapshot", "reuse", "forwards",
        "config", "runtime", "mesh", "tokens", "policies", "cache", "attention", "models", "sampling",
        "observe",
    },
    "engine": {"snapshot", "texts",
        "config", "runtime", "degrees", "mesh", "tokens", "policies", "models", "sampling", "observe",
        "account", "alike", "attention", "denoise", "telemetry",
    },
    "bench": {
        "batch", "config", "degrees", "engine", "geometry", "libraries", "mesh", "models", "observe",
        "policies", "quality", "report", "runtime", "sampling", "target", "tokens", "video",
    },
    "run_folder": {"engine", "report", "target", "trace", "video"},
    "__init__": {"config", "engine", "runtime"},
    "__main__": {"cli"},
}  # fmt: skip
ALLOWED["cli"] = set(ALLOWED) - {"__main__"}  # the composition root

# Where diffusers and transformers may be named.
LIBRARIES = {"diffusers": {"models"}, "transformers": {"models"}, "distvae": {"models"}}

MODULES = {
    ".".join([NAME, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted((*PACKAGE.rglob("*.py"), *(PACKAGE / "launchers").glob("*.py")))
}


def tree(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room(module):
    """`jano_dist.tokens.grid` -> `tokens`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source, module, is_package, modules):
    """All modules that a module imports, wherever in it, also relatively and by `import_module`."""
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            inner = names & set(modules)  # `from package import module`
            found |= inner | ({base} if names - inner else set())
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def imported(module):
    return imports(tree(module), module, MODULES[module].name == "__init__.py", MODULES)


def ours(module):
    return {name for name in imported(module) if name.split(".")[0] == NAME}


class TestReader:
    """The reader itself: a test that sees nothing finds nothing."""

    @pytest.mark.parametrize(
        ("source", "found"),
        [
            ("import torch.nn as nn", {"torch.nn"}),
            ("from jano_dist.tokens.grid import Shape3", {"jano_dist.tokens.grid"}),
            ("from jano_dist.tokens import grid", {"jano_dist.tokens.grid"}),
            ("from jano_dist import observe, Config", {"jano_dist.observe", "jano_dist"}),
            ("def f():\n  if x:\n    import jano_dist.cli", {"jano_dist.cli"}),
            ("if TYPE_CHECKING:\n  from jano_dist.engine import Engine", {"jano_dist.engine"}),
            ("from .base import Policy", {"jano_dist.policies.base"}),
            ("from . import base", {"jano_dist.policies.base"}),
            ("from ..engine import Engine", {"jano_dist.engine"}),
            ("from .. import engine", {"jano_dist.engine"}),
            ("importlib.import_module('training')", {"training"}),
        ],
    )
    def test_finds(self, source, found):
        assert imports(ast.parse(source), "jano_dist.policies.jano", False, MODULES) == found

    def test_relative_in_a_package(self):
        source = ast.parse("from .jano import JanoPolicy\nfrom ..tokens import plan")
        found = imports(source, "jano_dist.policies", True, MODULES)
        assert found == {"jano_dist.policies.jano", "jano_dist.tokens.plan"}

    def test_knows_the_modules(self):
        assert {"jano_dist", "jano_dist.cli", "jano_dist.tokens", "jano_dist.tokens.grid"} <= set(MODULES)


class TestArrows:
    def test_every_room_is_known(self):
        unknown = {room(module) for module in MODULES} - set(ALLOWED)
        assert not unknown, "a new room: say in DESIGN section 4, and here, what it may import"

    def test_only_allowed_rooms(self):
        for module in MODULES:
            rooms = {room(name) for name in ours(module)}
            assert rooms <= ALLOWED[room(module)] | {room(module), "errors"}, module

    def test_tokens_import_nothing_of_ours(self):
        """Not even `errors`: pure tensor logic."""
        for module in MODULES:
            if room(module) == "tokens":
                assert {room(name) for name in ours(module)} <= {"tokens"}

    @pytest.mark.parametrize("module", ["jano_dist.engine", "jano_dist.denoise"])
    def test_the_engine_knows_no_concrete_policy_or_model(self, module):
        concrete = {name for name in ours(module) if room(name) in ("policies", "models")}
        assert concrete == {"jano_dist.policies", "jano_dist.models"}

    def test_nobody_imports_the_training_or_the_tests(self):
        for module in MODULES:
            assert not {name.split(".")[0] for name in imported(module)} & {"training", "tests", "benchmarks"}

    def test_nobody_imports_the_command_line(self):
        importers = {module for module in MODULES if any(room(name) == "cli" for name in ours(module))}
        assert {room(module) for module in importers} <= {"__main__", "cli"}

    def test_libraries_of_models_stay_in_their_rooms(self):
        for module in MODULES:
            used = {name.split(".")[0] for name in imported(module)} & set(LIBRARIES)
            assert all(room(module) in LIBRARIES[library] for library in used), module


class TestNoGlobalState:
    def test_no_global_statement(self):
        for module in MODULES:
            assert not [node.lineno for node in ast.walk(tree(module)) if isinstance(node, ast.Global)], (
                module
            )

    def test_no_cache_that_outlives_a_call(self):
        names = {"cache", "lru_cache", "cached"}
        for module in MODULES:
            for node in ast.walk(tree(module)):
                for decorator in getattr(node, "decorator_list", []):
                    call = decorator.func if isinstance(decorator, ast.Call) else decorator
                    assert getattr(call, "attr", getattr(call, "id", "")) not in names, (module, node.name)


class TestSize:
    def test_a_file_has_400_lines_at_most(self):
        for module, path in MODULES.items():
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, module

    def test_a_function_fits_on_a_screen(self):
        for module in MODULES:
            for node in ast.walk(tree(module)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno - node.lineno + 1 <= 60, (module, node.name)
