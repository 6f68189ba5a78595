"""The repository's own source files as `tests/test_architecture.py` and others look at them."""

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What each folder at the root installs as.
PACKAGES = {
    "khub": "khub",
    "presets": "khub.presets",
    "applications": "khub.applications",
    "nlp": "khub.nlp",
    "cv": "khub.cv",
}
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Import:
    """One imported module: its full name, the line, and whether it is imported with the file."""

    module: str
    line: int
    at_top: bool


@dataclass(frozen=True)
class Source:
    """A Python file of the package."""

    path: Path
    root: Path = ROOT

    @property
    def name(self):
        """Path from the repository's root, "khub/ops/op.py"."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def module(self):
        """Name it is imported by, "khub.ops.op"."""
        folder, *rest = self.path.relative_to(self.root).with_suffix("").parts
        return ".".join([PACKAGES[folder], *rest]).removesuffix(".__init__")

    @cached_property
    def text(self):
        return self.path.read_bytes().decode("utf-8")

    @cached_property
    def tree(self):
        return ast.parse(self.text, self.name)

    @cached_property
    def logic_lines(self):
        """Number of lines that are not blank, comment or docstring."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        lines = set()
        for token in tokens:
            if token.type not in _LAYOUT:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
                lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        return len(lines)

    @cached_property
    def imports(self):
        """Every module it imports, written `import`, `from` or `import_module("...")`."""
        return list(self._imports(self.tree, at_top=True))

    def _imports(self, node, at_top):
        for child in ast.iter_child_nodes(node):
            deeper = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for module in self._modules(child):
                yield Import(module, child.lineno, at_top)
            yield from self._imports(child, at_top and not deeper)

    def _modules(self, node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = self._absolute(node)
            # `from khub import ops` imports the module khub.ops, where there is one.
            return [self._deepest(base, alias.name) for alias in node.names]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function.endswith("import_module") or function == "__import__":
                return [node.args[0].value.removeprefix(".")]
        return []

    def _absolute(self, node):
        if not node.level:
            return node.module
        package = self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{node.module}" if node.module else package

    @staticmethod
    def _deepest(base, name):
        return f"{base}.{name}" if f"{base}.{name}" in MODULES else base


SOURCES = [Source(path) for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {source.module for source in SOURCES} | {
    source.module.rpartition(".")[0] for source in SOURCES
}
