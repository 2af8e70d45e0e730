"""Names and arguments of ds2deploy in a Python block, followed through its types."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

from tests.docs.pages import ROOT, nearest
from tests.docs.python_types import (
    Instance,
    Thing,
    Value,
    element,
    fields,
    hints,
    instance,
    members,
    ours,
)  # fmt: skip


class Checker(ast.NodeVisitor):
    """Reads statements in their order, and keeps the types of the names that they bind.

    Attributes:
        names: values of names; those of an earlier block of the page may be given.
        faults: line in the block, and message, of each name or call that does not exist.
    """

    def __init__(self, names: dict[str, Value], strict: bool = True) -> None:
        self.names = names
        self.faults: list[tuple[int, str]] = []
        self._strict = strict

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = self._module(node, alias.name)
            top = alias.name.partition(".")[0]
            bound = module if alias.asname else self._module(node, top)
            self.names[alias.asname or top] = bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        name = node.module or ""
        module = self._module(node, name)
        for alias in node.names:
            found: Value = None
            if name.startswith("examples."):
                self._example(node, name, alias.name)
            elif module is not None:
                found = self._member(node, module, alias.name)
            self.names[alias.asname or alias.name] = found

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.evaluate(node.value)
        for target in node.targets:
            self._bind(target, value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            value = self.evaluate(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, value)
        for statement in node.body:
            self.visit(statement)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, element(self.evaluate(node.iter)))
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, element(self.evaluate(node.iter)))
        for condition in node.ifs:
            self.evaluate(condition)

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> None:
        for part in node.generators:
            self.visit(part)
        self.evaluate(node.elt)

    visit_GeneratorExp = visit_SetComp = visit_ListComp  # noqa: N815

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, self.evaluate(node.value))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = dict(self.names)
        for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            known = self.evaluate(parameter.annotation) if parameter.annotation else None
            is_class = isinstance(known, Thing) and isinstance(known.value, type)
            self.names[parameter.arg] = Instance(known.value) if is_class else None
        for statement in (*node.decorator_list, *node.body):
            self.visit(statement)
        self.names = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.evaluate(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.evaluate(node)

    def evaluate(self, node: ast.expr) -> Value:
        """Find what an expression is, and report the names in it that do not exist."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.evaluate(node.value)
            return None if base is None else self._member(node, base, node.attr)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self.visit(node.slice)
            return element(self.evaluate(node.value))
        self.visit(node)
        return None

    def _call(self, node: ast.Call) -> Value:
        function = self.evaluate(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.evaluate(argument)
        if not isinstance(function, Thing) or not ours(function.value):
            return None
        self._arguments(node, function)
        if isinstance(function.value, type):
            return Instance(function.value)
        return instance(hints(function.value).get("return"))

    def _arguments(self, node: ast.Call, function: Thing) -> None:
        try:
            signature = inspect.signature(function.value)
        except ValueError:
            return
        given = [*([None] if function.bound else []), *(None for _ in node.args)]
        open_ended = any(isinstance(item, ast.Starred) for item in node.args)
        open_ended |= any(keyword.arg is None for keyword in node.keywords)
        open_ended |= any(getattr(item, "value", None) is Ellipsis for item in node.args)
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            if open_ended or not self._strict:
                signature.bind_partial(**keywords)
            else:
                signature.bind(*given, **keywords)
        except TypeError as error:
            self._report(node, f"{ast.unparse(node.func)}: {error}; its arguments are {signature}")

    def _member(self, node: ast.AST, base: Thing | Instance, name: str) -> Value:
        owners = [base.value] if isinstance(base, Thing) else members(base.kind)
        owner = next(filter(ours, owners), None)  # of a union, the library's own class
        if not ours(owner):
            return None
        found = inspect.getattr_static(owner, name, None)
        if isinstance(base, Instance):
            if name in hints(owner):
                return instance(hints(owner)[name])
            if isinstance(found, property):
                return instance(hints(found.fget).get("return"))
            if inspect.isfunction(found):
                return Thing(found, bound=True)
        if hasattr(owner, name):
            return Thing(getattr(owner, name))
        if inspect.ismodule(owner):
            try:
                return Thing(importlib.import_module(f"{owner.__name__}.{name}"))
            except ModuleNotFoundError:
                pass
        elif re.search(rf"self\.{name}\b", inspect.getsource(owner)):
            return None
        public = [other for other in dir(owner) if not other.startswith("_")]
        self._report(node, f"{owner.__name__} has no {name}; write one of {nearest(name, public)}")
        return None

    def _module(self, node: ast.AST, name: str) -> Thing | None:
        if name.partition(".")[0] != "ds2deploy":
            return None
        try:
            return Thing(importlib.import_module(name))
        except ModuleNotFoundError:
            self._report(node, f"there is no module {name}")
            return None

    def _example(self, node: ast.AST, module: str, name: str) -> None:
        path = f"{module.replace('.', '/')}.py"
        if not (ROOT / path).is_file():
            self._report(node, f"there is no {path}")
        else:
            body = ast.parse((ROOT / path).read_text("utf-8")).body
            if name not in {getattr(statement, "name", "") for statement in body}:
                self._report(node, f"{path} has no {name}")

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple):
            kinds = fields(value.kind) if isinstance(value, Instance) else ()
            for index, part in enumerate(target.elts):
                known = instance(kinds[index]) if len(kinds) == len(target.elts) else None
                self._bind(part, known)
        else:
            self.visit(target)

    def _report(self, node: ast.AST, message: str) -> None:
        self.faults.append((getattr(node, "lineno", 1), message))
