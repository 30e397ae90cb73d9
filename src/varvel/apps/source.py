"""What a Python file says of itself without being run: its PEP 723 block, its imports, the names it binds."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from varvel.apps.errors import BadOptions, DeployRefused
from varvel.apps.rules import Options, parse_options

_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
"""The regular expression of the inline script metadata specification (PEP 723)."""


class SourceRefused(DeployRefused):
    """The app's file is not valid Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an environment must hold."""

    requirements: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    python: str = ""
    """Version specifier, such as `>=3.12`; empty for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A parsed file."""

    needs: Needs
    options: Options
    imports_fal: bool
    fal_classes: dict[str, tuple[str, ...] | None]
    """Classes that derive from `fal.App` by the look of it, and their `requirements` where they are literals."""
    names: frozenset[str]
    """Names bound at the top level."""
    open_ended: bool
    """Whether names may be bound that cannot be seen here (`import *`, `globals()`, `__getattr__`)."""


def parse(text: str, file: str) -> Source:
    """Read a file's own words. Raises `SourceRefused`, `BadOptions`."""
    try:
        tree = ast.parse(text, file)
    except (SyntaxError, ValueError) as problem:
        raise SourceRefused(f"{file} is not valid Python: {problem}") from problem
    needs, options = script_block(text, file)
    names, open_ended = _bound(tree)
    return Source(
        needs=needs,
        options=options,
        imports_fal=_imports_fal(tree),
        fal_classes=_fal_classes(tree),
        names=frozenset(names),
        open_ended=open_ended,
    )


def script_block(text: str, file: str) -> tuple[Needs, Options]:
    """Requirements and `[tool.varvel]` settings of the PEP 723 block. Raises `BadOptions`."""
    blocks = [match for match in _BLOCK.finditer(text) if match["type"] == "script"]
    if len(blocks) > 1:
        raise BadOptions(f"{file} has more than one '# /// script' block")
    if not blocks:
        return Needs(), Options()
    lines = blocks[0]["content"].splitlines(keepends=True)
    content = "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        table = tomllib.loads(content)
    except tomllib.TOMLDecodeError as problem:
        raise BadOptions(f"the '# /// script' block of {file} is not valid TOML: {problem}") from problem
    tool = table.get("tool", {})
    needs = Needs(
        requirements=requirement_list(table.get("dependencies", []), f"{file}: dependencies"),
        overrides=requirement_list(
            tool.get("uv", {}).get("override-dependencies", []), f"{file}: override-dependencies"
        ),
        python=_specifier(table.get("requires-python", ""), file),
    )
    return needs, parse_options(tool.get("varvel", {}), f"{file}: [tool.varvel]")


def requirement_list(value: Any, where: str) -> tuple[str, ...]:
    """Requirements as PEP 508 has them, each checked. Raises `BadOptions`."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise BadOptions(f"{where} must be a list of requirements")
    for item in value:
        try:
            Requirement(item)
        except InvalidRequirement as problem:
            raise BadOptions(f"{where}: {item!r} is not a requirement: {problem}".splitlines()[0]) from problem
    return tuple(value)


def requirements_file(text: str) -> tuple[str, ...]:
    """The requirements of a `requirements.txt`.

    Options (`-r`, `--hash`, `--index-url`) are refused: they would change how everything is resolved.
    """
    joined = re.sub(r"\\\n", " ", text)
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
    found = [line for line in lines if line]
    if options := [line for line in found if line.startswith("-") or " --hash" in line]:
        raise BadOptions(f"requirements.txt: the option {options[0]!r} is not supported; list requirements only")
    return requirement_list(found, "requirements.txt")


def _specifier(value: Any, file: str) -> str:
    try:
        return str(SpecifierSet(value))
    except (InvalidSpecifier, TypeError, AttributeError) as problem:
        raise BadOptions(f"{file}: requires-python {value!r} is not a version specifier") from problem


def _imports_fal(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(item.name.split(".")[0] == "fal" for item in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "fal":
            return True
    return False


def _fal_classes(tree: ast.Module) -> dict[str, tuple[str, ...] | None]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: _literal_requirements(node) for node in classes if any(_is_fal_app(base) for base in node.bases)}


def _is_fal_app(base: ast.expr) -> bool:
    if isinstance(base, ast.Attribute):
        return base.attr == "App" and isinstance(base.value, ast.Name) and base.value.id == "fal"
    return False


def _literal_requirements(node: ast.ClassDef) -> tuple[str, ...] | None:
    for statement in node.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if any(isinstance(target, ast.Name) and target.id == "requirements" for target in targets):
            return _literal_list(getattr(statement, "value", None))
    return None


def _literal_list(value: ast.expr | None) -> tuple[str, ...] | None:
    try:
        found = ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
    return flat(found) if isinstance(found, list | tuple) else None


def flat(value: Any) -> tuple[str, ...]:
    """Requirements of a `fal.App`: a list, or a list of lists for several install steps, which become one."""
    found: list[str] = []
    for item in value or ():
        found += flat(item) if isinstance(item, list | tuple) else [str(item)]
    return tuple(found)


def _bound(tree: ast.Module) -> tuple[set[str], bool]:
    names: set[str] = set()
    open_ended = False
    for node in _top_level(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(item.asname or item.name).split(".")[0] for item in node.names}
            open_ended |= any(item.name == "*" for item in node.names)
        else:
            found = [item for item in ast.walk(node) if isinstance(item, ast.Name)]
            names |= {item.id for item in found if isinstance(item.ctx, ast.Store)}
            open_ended |= any(item.id in ("globals", "exec", "setattr") for item in found)
    return names, open_ended


def _top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that run at import, those inside `if`, `try` and `with` among them."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        for name in ("body", "orelse", "finalbody", "handlers"):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ExceptHandler):
                found += _top_level(getattr(node, name, []))
    return found
