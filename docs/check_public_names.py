"""Fail if a public name has no docstring, or stands on no page of the documentation.

Public is what `hyprax/__init__.pyi` and the `__init__.py` of public subpackages re-export. A page documents a name by
`::: path.of.the.name`; a name with several public paths needs one of them. Run: python docs/check_public_names.py
"""

import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import griffe

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src"


def load() -> tuple[griffe.GriffeLoader, griffe.Object | griffe.Alias]:
    """The package as its source says it is, and its loader: nothing is imported."""
    loader = griffe.GriffeLoader(search_paths=[SOURCE])
    root = loader.load("hyprax")
    loader.resolve_aliases(external=True)
    return loader, root


def public_names(root: griffe.Object | griffe.Alias) -> Mapping[str, list[str]]:
    """Where each public object is defined -> the public paths by which a user reaches it."""
    names: dict[str, list[str]] = defaultdict(list)

    def add(package: griffe.Object | griffe.Alias, path: str) -> None:
        names[package.canonical_path].append(path)
        for name, member in package.members.items():
            if name.startswith("_") or (member.is_alias and not _target(member).startswith("hyprax.")):
                continue
            if member.is_module and member.is_init_module:
                add(member, f"{path}.{name}")
            elif member.is_alias:
                names[member.canonical_path].append(f"{path}.{name}")

    add(root, root.path)
    return names


def _target(member: griffe.Object | griffe.Alias) -> str:
    return member.target_path if isinstance(member, griffe.Alias) else member.path


def main() -> int:
    loader, root = load()
    names = public_names(root)
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    documented = {path for page in pages for path in re.findall(r"^::: ([\w.]+)", page, flags=re.MULTILINE)}

    faults = []
    for canonical, paths in sorted(names.items()):
        target = loader.modules_collection[canonical]
        if not target.has_docstring:
            faults.append(f"{paths[0]}: no docstring ({target.filepath}:{target.lineno})")
        if not target.is_module and not documented.intersection(paths):
            faults.append(f"{paths[0]}: on no page, write `::: {paths[0]}` on one of docs/api/*.md")
    known = {path for paths in names.values() for path in paths}
    faults += [f"{path}: on a page, but not public" for path in sorted(documented - known)]

    print("\n".join(faults) or f"{len(names)} public names, each with a docstring and a place in the documentation")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
