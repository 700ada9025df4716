"""What editors and type checkers know: the lazy names, and what the public functions return."""

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

import tf_alexnet

SURFACE = ROOT / "tests" / "typing_surface.py"
PACKAGE = Path(tf_alexnet.__file__).parent
LAZY = sorted(
    ".".join(("tf_alexnet", *path.relative_to(PACKAGE).parent.parts))
    for path in PACKAGE.rglob("__init__.py")
    if "lazy_names(" in path.read_text()
)


def errors(*programs):
    """What `mypy --strict` says about programs."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, f"--cache-dir={os.devnull}", *programs],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return [line for line in done.stdout.splitlines() if " error: " in line], done.stdout


def test_the_public_surface_in_strict_mypy(tmp_path):
    """The second file is the first with a misspelt name and a wrong type, which are found."""
    faulty = SURFACE.read_text().replace("ta.read_weights(path)", "ta.read_weight(path)")
    faulty = faulty.replace("assert_type(report.rows, int)", "assert_type(report.rows, str)")
    (tmp_path / "faulty.py").write_text(faulty)
    found, shown = errors(SURFACE, tmp_path / "faulty.py")
    assert "checked 2 source files" in shown
    assert all("faulty.py" in line for line in found), shown
    names = [line for line in found if 'Module has no attribute "read_weight"' in line]
    types = [line for line in found if 'Expression is of type "int", not "str"' in line]
    assert (len(names), len(types)) == (1, 1), shown


def test_the_surface_uses_every_public_name():
    tree = ast.parse(SURFACE.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "ta"
    }
    assert set(tf_alexnet.__all__) == used


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_imported_for_type_checkers_too(package):
    """Each `import X as X`, which alone counts as an export, from where it comes at run time."""
    module = import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (block, *_) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    shown = {
        alias.asname: f"{node.module}.{alias.name}" for node in block.body for alias in node.names
    }
    homes = {
        name: home if home == f"{package}.{name}" else f"{home}.{name}"
        for name, home in module._HOMES.items()
    }
    assert shown == homes
    assert {name for name in dir(module) if name[:2] != "__"} == set(module.__all__) == set(homes)


def functions():
    """(name, function) of all public functions, and of the methods of all public classes."""
    for name in tf_alexnet.__all__:
        value = getattr(tf_alexnet, name)
        if inspect.isfunction(value):
            yield name, value
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            function = member.fget if isinstance(member, property) else member
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and attribute[0] != "_":
                yield f"{name}.{attribute}", function


def test_public_functions_state_their_types():
    for name, function in functions():
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            typed = parameter.annotation is not parameter.empty
            assert typed or parameter.name in ("self", "cls"), f"{name}: {parameter.name}"
        assert signature.return_annotation is not signature.empty, name
    assert (PACKAGE / "py.typed").exists()
