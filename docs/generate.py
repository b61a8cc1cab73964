"""Write the pages and documents that the source tells: `python dev.py docs`; --check only compares.

docs/recipe.md and docs/profile.md come from the configs, whose source is read, not imported: a field's meaning is the
string below it, which only the source holds. docs/openapi.json and docs/openapi-admin.json are the server's own.
"""

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "twotower"

RECIPE_HEAD = """# The recipe

One TOML file describes a run. Every key has a default, so a recipe holds only what differs; an unknown key is refused
by name. `twotower init` writes one from your own files, and `twotower run RECIPE` goes the whole path with it.

- On the command line: `--set train.epochs=3`, any number of times.
- In the environment: `TWOTOWER__TRAIN__EPOCHS=3`. The command line wins over the environment, and that over the file.

*Written by `python dev.py docs` from the configs in the source; a check fails where it is out of date.*
"""

PROFILE_HEAD = """# The profile of a pipeline

Where the pipeline runs and what its tasks may use: one TOML file, given by `--profile` to `twotower pipeline compile`,
`submit` and `schedule`, and applied when the pipeline is compiled. Every key has a default. The one for the cluster of
`twotower cluster up` is `deploy/profiles/kind.toml`; [pipeline.md](pipeline.md) tells how it is used.

*Written by `python dev.py docs` from the configs in the source; a check fails where it is out of date.*
"""

PAGES = {"recipe.md": (RECIPE_HEAD, "Recipe"), "profile.md": (PROFILE_HEAD, "Profile")}
"""Page -> its head, and the config that it tells."""

BOUNDS = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<=", "MinLen": "at least", "MaxLen": "at most"}


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a table."""

    name: str
    annotation: ast.expr
    default: ast.expr | None
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """The package's dataclasses, type aliases and named constants."""

    classes: dict[str, ast.ClassDef]
    aliases: dict[str, ast.expr]
    constants: dict[str, ast.Constant]

    def configs_in(self, annotation: ast.AST) -> list[str]:
        """The configs that a type mentions, in order, also through aliases."""
        if isinstance(annotation, ast.Name) and annotation.id in self.aliases:
            return self.configs_in(self.aliases[annotation.id])
        if isinstance(annotation, ast.Name):
            return [annotation.id] if annotation.id in self.classes else []
        found = [config for child in ast.iter_child_nodes(annotation) for config in self.configs_in(child)]
        return list(dict.fromkeys(found))


def main() -> int:
    """Write or check the pages."""
    source = read_source(PACKAGE)
    pages = {name: render(source, head, config=config) for name, (head, config) in PAGES.items()}
    status = 0
    for name, page in (pages | openapi_documents()).items():
        path = ROOT / "docs" / name
        if "--check" not in sys.argv[1:]:
            path.write_text(page, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != page:
            print(f"docs/{name}: differs from what the source tells. Run: python dev.py docs", file=sys.stderr)
            status = 1
    return status


def openapi_documents() -> dict[str, str]:
    """What the server's two ports answer at `/openapi.json`; no bundle has a part in it."""
    from twotower.serving.api.admin import create_admin
    from twotower.serving.api.app import create_app
    from twotower.serving.api.service import Service
    from twotower.serving.door.telemetry import Telemetry
    from twotower.serving.live.deployment import Live

    service = Service(Live(), store=None, telemetry=Telemetry())
    documents = {"openapi.json": create_app(service), "openapi-admin.json": create_admin(service)}
    return {name: json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n" for name, app in documents.items()}


def read_source(package: Path) -> Source:
    """What every file below the folder defines at its top level."""
    source = Source({}, {}, {})
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.ClassDef(name=name, decorator_list=decorators):
                    if any("dataclass" in ast.unparse(decorator) for decorator in decorators):
                        source.classes[name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant() as value):
                    source.constants[name] = value
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_type(value):
                    source.aliases[name] = value
    return source


def _is_type(value: ast.expr) -> bool:
    named = isinstance(value, ast.Subscript) and ast.unparse(value.value) in ("Annotated", "Literal", "tuple", "dict")
    return named or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def render(source: Source, head: str, *, config: str) -> str:
    """A page: the top-level keys, then a section per table in the order of the fields."""
    sections = [head, *_section(source, config, "Top level", prefix="", told={})]
    return "\n".join(sections).rstrip() + "\n"


def _section(source: Source, name: str, title: str, *, prefix: str, told: dict[str, str]) -> Iterator[str]:
    """A table's heading, keys and, below it, the tables that it holds.

    `told` maps the configs told before to their titles, so that each is told once.
    """
    heading = "#" * max(2, 1 + prefix.count(".")) + " "
    if name in told:
        yield f"{heading}{title}\n\nAs {told[name]}.\n"
        return
    told[name] = title
    node = source.classes[name]
    fields = [field for field in _fields(node) if not _is_kind(field)]
    plain = [field for field in fields if not _is_table(source, field)]
    yield f"{heading}{title}\n\n{ast.get_docstring(node) or ''}\n"
    if plain:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield from (_row(source, field) for field in plain)
        yield ""
    for field in fields:
        yield from _tables_in(source, field, path=f"{prefix}{field.name}", told=told, heading=heading)


def _tables_in(source: Source, field: Field, *, path: str, told: dict[str, str], heading: str) -> Iterator[str]:
    """The sections of the tables that a key holds."""
    configs = source.configs_in(field.annotation)
    if len(configs) > 1 and all(config in told for config in configs):
        kinds = [
            _type(source, kind.annotation)
            for config in configs
            for kind in filter(_is_kind, _fields(source.classes[config]))
        ]
        yield f"#{heading}`[[{path}]]`\n\nThe same kinds: {', '.join(kinds)}.\n"
        return
    for config in configs:
        yield from _section(source, config, _title(source, field, path, config), prefix=f"{path}.", told=told)


def _title(source: Source, field: Field, path: str, config: str) -> str:
    """How the table is written in TOML; one of several kinds is told apart by its `kind`."""
    if _is_table(source, field):
        return f"`[{path}]`"
    kind = next(filter(_is_kind, _fields(source.classes[config])), None)
    told_apart = f", kind {_type(source, kind.annotation)}" if kind else ""
    named = ast.unparse(field.annotation).startswith(("dict", "Mapping"))
    listed = ast.unparse(field.annotation).startswith(("tuple", "list"))
    alone = f"`[[{path}]]`" if listed or kind else f"`[{path}]`"
    return (f"`[{path}.NAME]`" if named else alone) + told_apart


def _is_kind(field: Field) -> bool:
    """Whether the key only tells one kind of table from another, by having one value."""
    annotation = field.annotation
    one_value = isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Constant)
    return field.name == "kind" and one_value


def _is_table(source: Source, field: Field) -> bool:
    return isinstance(field.annotation, ast.Name) and field.annotation.id in source.classes


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    """The fields with the string below each."""
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                text = " ".join(str(below.value.value).split())
            yield Field(statement.target.id, statement.annotation, statement.value, text)


def _row(source: Source, field: Field) -> str:
    cells = (f"`{field.name}`", _type(source, field.annotation), _default(source, field.default), field.text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(source: Source, annotation: ast.expr) -> str:
    """A type as a reader of TOML says it."""
    match annotation:
        case ast.Name(id=name) if name in source.aliases:
            return _type(source, source.aliases[name])
        case ast.Name(id=name) if name in source.classes:
            return "table"
        case ast.Constant(value=None):
            return "not set"
        case ast.BinOp(left=left, right=right):
            kinds = (_type(source, left), _type(source, right))
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "not set"))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return ", ".join(f"`{_toml(source, value)}`" for value in values)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[base, *bounds])):
            return _type(source, base) + "".join(_bound(bound) for bound in bounds)
        case ast.Subscript(value=ast.Name(id="tuple" | "list"), slice=inner):
            return f"list of {_type(source, inner.elts[0] if isinstance(inner, ast.Tuple) else inner)}"
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, value])):
            return f"table of {_type(source, value)}"
    return {"str": "string", "bool": "true or false", "Path": "path"}.get(
        ast.unparse(annotation), ast.unparse(annotation)
    )


def _bound(bound: ast.expr) -> str:
    if isinstance(bound, ast.Call) and ast.unparse(bound.func) in BOUNDS and bound.args:
        return f", {BOUNDS[ast.unparse(bound.func)]} {ast.unparse(bound.args[0])}"
    return ""


def _default(source: Source, default: ast.expr | None) -> str:
    if default is None:
        return "required"
    if isinstance(default, ast.Call):
        factory = next((word.value for word in default.keywords if word.arg == "default_factory"), default)
        default = factory.body if isinstance(factory, ast.Lambda) else factory
        if ast.unparse(default).startswith("tagged"):
            return "by this code"
        return {"dict": "`{}`", "tuple": "`[]`"}.get(ast.unparse(default), f"`{_toml(source, default)}`")
    is_none = isinstance(default, ast.Constant) and default.value is None
    return "not set" if is_none else f"`{_toml(source, default)}`"


def _toml(source: Source, value: ast.expr) -> str:
    """A Python value as TOML writes it; a config of ours as an inline table."""
    match value:
        case ast.Name(id=name) if name in source.constants:
            return _toml(source, source.constants[name])
        case ast.Constant(value=bool() as truth):
            return str(truth).lower()
        case ast.Constant(value=str() as text):
            return f'"{text}"'
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return f"[{', '.join(_toml(source, item) for item in items)}]"
        case ast.Dict(keys=keys, values=values):
            pairs = [(_toml(source, key).strip('"'), item) for key, item in zip(keys, values, strict=True) if key]
            return "{" + ", ".join(f"{key} = {_toml(source, item)}" for key, item in pairs) + "}"
        case ast.Call(keywords=words):
            return "{" + ", ".join(f"{word.arg} = {_toml(source, word.value)}" for word in words) + "}"
    return ast.unparse(value)


if __name__ == "__main__":
    sys.exit(main())
