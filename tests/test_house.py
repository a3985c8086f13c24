"""The rules of the house, read from the sources. docs and DESIGN say why; a mistake here names file and line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from hornbook.base.settings import knobs
from hornbook.train.config import RunConfig

SOURCE = Path(__file__).parent.parent / "src"
FLOORS = {
    "base": 1,
    "text": 2,
    "model": 3,
    "shards": 3,
    "runs": 4,
    "infer": 5,
    "exchange": 5,
    "report": 5,
    "train": 6,
    "serve": 6,
    "recipes": 7,
    "plan": 8,
    "cli": 9,
    "": 9,  # hornbook itself, the Python door
    "__main__": 10,  # python -m hornbook
}
STAGES = ("files.staged_folder(", "files.staged_file(", "files.open_to_write(", "unfinished_folder(")
# A library writes by itself here: into a staged folder that was handed in, or into memory.
WRITES_WHERE_IT_MAY = {
    ("hornbook.model.folder", "save_weights"),
    ("hornbook.model.folder", "describe_model"),
    ("hornbook.train.distributed_checkpoint", "_write_mine"),
    ("hornbook.text.tokenizer", "save"),
    ("hornbook.shards.prepare", "_learn"),
    ("hornbook", "_repr_png_"),
    ("hornbook.exchange.one_page", "export_page"),
}
MOST_KNOBS = 120


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[2].partition(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Module]:
    found = [Module(name_of(path), path, ast.parse(path.read_text())) for path in sorted(SOURCE.rglob("*.py"))]
    return {module.name: module for module in found}


def imported(module: Module) -> Iterator[tuple[str, int]]:
    """Every module of the house that this one names, wherever in the file, with the line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            named = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: imports are written in full"
            inside = [f"{node.module}.{each.name}" for each in node.names]
            named = [each if each in modules() else str(node.module) for each in inside]
        else:
            continue
        yield from ((each, node.lineno) for each in named if each.split(".")[0] == "hornbook")


def test_every_room_has_its_floor() -> None:
    assert {module.room for module in modules().values()} <= FLOORS.keys()


def test_imports_point_down_and_never_across() -> None:
    wrong = []
    for module in modules().values():
        for target, line in imported(module):
            room = modules()[target].room
            if room != module.room and FLOORS[room] >= FLOORS[module.room]:
                wrong.append(f"{module.path}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_a_command_that_names_something_is_quoted_in_one_place() -> None:
    """By console.command: a name may hold blanks."""
    written = re.compile(r"""f["'].*hornbook (train|resume|generate|export|import|serve|prepare|report)[^"']*\{""")
    wrong = [
        f"{module.path}:{number}"
        for module in modules().values()
        for number, line in enumerate(module.path.read_text().splitlines(), 1)
        if written.search(line)
    ]
    assert not wrong


def test_nothing_prints_by_itself() -> None:
    """Or a closed terminal would end it (base/output.py). The page for a Space is a program of its own."""
    printing = [
        f"{module.path}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert not [place for place in printing if "space.py" not in place]


def test_no_circle_among_modules() -> None:
    graph = {name: {target for target, _ in imported(module)} - {name} for name, module in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ["report", "infer", "serve"])
def test_what_reads_runs_knows_nothing_of_training(room: str) -> None:
    """Also not by way of another module."""
    waiting = [name for name, module in modules().items() if module.room == room]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += [target for target, _ in imported(modules()[name]) if target not in seen]
    assert not [name for name in seen if name.startswith("hornbook.train")]


ON_THE_DISK = {
    *("write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "removedirs", "rmdir", "rename", "renames"),
    *("truncate", "symlink", "symlink_to", "hardlink_to", "rmtree", "copy2", "copyfile", "copytree", "chmod"),
    *("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "fdopen"),
}
LIBRARY_WRITES = {"save_file", "savefig", "save", "savez", "savetxt", "tofile", "dump", "imsave", "to_csv", "writestr"}
BY_ARGUMENTS = {"replace", "memmap", "open"}
OF_THE_SYSTEM = {"os", "shutil"}
SYSTEM_WRITES = {"open", "replace", "remove", "link", "move", "copy", "write"}


def changes_the_disk(call: ast.Call, owner: str, name: str) -> bool:
    if owner in OF_THE_SYSTEM and name in SYSTEM_WRITES:
        return True
    if name not in BY_ARGUMENTS:
        return name in ON_THE_DISK
    constants = [
        each.value for each in (*call.args, *(k.value for k in call.keywords)) if isinstance(each, ast.Constant)
    ]
    texts = [each for each in constants if isinstance(each, str)]
    if name == "open":
        return any(len(each) <= 3 and set(each) & set("wax+") for each in texts)
    if name == "memmap":
        return "r" not in texts
    # Path.replace takes one path; str.replace takes two texts, dataclasses.replace takes keywords.
    return len(call.args) == 1 and not call.keywords


def writes(module: Module) -> Iterator[tuple[str, int]]:
    """Calls that change the disk, but for those into what base/files.py staged."""

    def look(node: ast.AST, function: str, staged: frozenset[str]) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            bound = {
                ast.unparse(item.optional_vars)
                for item in node.items
                if item.optional_vars and ast.unparse(item.context_expr).startswith(STAGES)
            }
            staged |= bound
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            into = {each.id for argument in node.args for each in ast.walk(argument) if isinstance(each, ast.Name)}
            allowed = bool(into & staged) or (module.name, function) in WRITES_WHERE_IT_MAY
            allowed_anywhere = "os.devnull" in map(ast.unparse, node.args)  # nothing is kept of what goes there
            by_library = owner and name in LIBRARY_WRITES and not allowed
            if owner != "files" and not allowed_anywhere and (by_library or changes_the_disk(node, owner, name)):
                yield ast.unparse(node), node.lineno
        for child in ast.iter_child_nodes(node):
            yield from look(child, function, staged)

    yield from look(module.tree, "", frozenset())


def test_only_base_files_writes_to_the_disk() -> None:
    wrong = []
    for module in modules().values():
        if module.name != "hornbook.base.files":
            wrong += [f"{module.path}:{line}: {call}" for call, line in writes(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "path.open('r+')",
        "os.open(path, flags)",
        "os.remove(path)",
        "path.write_text(text)",
        "path.replace(other)",
        "os.replace(one, other)",
        "shutil.rmtree(path)",
        "os.makedirs(path)",
        "np.save(path, array)",
        "array.tofile(path)",
        "np.memmap(path, mode='w+')",
        "torch.save(model, path)",
        "figure.savefig(path)",
        "json.dump(value, file)",
        "with files.staged_file(out) as staging:\n    figure.savefig(out)",
        "with files.staged_file(out) as staging:\n    staging.unlink()",
    ],
)
def test_a_call_that_writes_is_recognised(line: str) -> None:
    assert list(writes(Module("hornbook.x", SOURCE, ast.parse(line)))) != []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "open(path, 'rb')",
        "text.replace('a', 'b')",
        "replace(config, seed=1)",
        "words.remove(word)",
        "np.memmap(path, mode='r')",
        "files.write_text(path, text)",
        "with files.staged_file(out) as staging:\n    figure.savefig(staging)",
    ],
)
def test_a_call_that_does_not_write_is_left_alone(line: str) -> None:
    assert list(writes(Module("hornbook.x", SOURCE, ast.parse(line)))) == []


# Where foreign files of torch.save come in: it reads instructions without following them, and loads weights only.
READS_PICKLES = "hornbook.exchange.torchfile"
# Where nanoGPT's table of characters comes in: it follows those that put numbers and texts into dictionaries.
READS_TABLES = "hornbook.exchange.characters"
# Where PyTorch's record of which hosts met comes in: what is read knows two classes and a date.
READS_WHO_MET = "hornbook.cli.agent"


def unpickles(module: Module) -> Iterator[str]:
    """Calls and imports by which a file could run code."""
    for node in ast.walk(module.tree):
        named, owner, name, weights_only = "", "", "", False
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            named = f"{owner} {name}" + "".join(f" {each.arg}" for each in node.keywords)
            weights_only = any(
                each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in node.keywords
            )
        if module.name in (READS_PICKLES, READS_TABLES):
            named = named.replace("pickletools", "")
        if module.name == READS_WHO_MET and named in ("import pickle", "pickle UnpicklingError"):
            named = ""
        weights_only = weights_only and module.name == READS_PICKLES and (owner, name) == ("torch", "load")
        loads = (owner, name) == ("torch", "load") and not weights_only
        if "pickle" in named.lower() or loads or (not owner and name in ("eval", "exec")):
            yield f"{module.path}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"


def test_nothing_is_unpickled() -> None:
    wrong = [each for module in modules().values() for each in unpickles(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "line", "allowed"),
    [
        ("hornbook.x", "import pickle", False),
        ("hornbook.x", "import pickletools", False),
        ("hornbook.x", "np.load(path, allow_pickle=True)", False),
        ("hornbook.x", "torch.load(path, weights_only=True)", False),
        ("hornbook.x", "eval(text)", False),
        ("hornbook.x", "model.eval()", True),
        (READS_WHO_MET, "import pickle", True),
        (READS_WHO_MET, "pickle.loads(data)", False),
        (READS_WHO_MET, "pickle.Unpickler(file).load()", False),
        (READS_PICKLES, "import pickletools", True),
        (READS_PICKLES, "import pickle", False),
        (READS_TABLES, "import pickletools", True),
        (READS_TABLES, "pickletools.genops(data)", True),
        (READS_TABLES, "import pickle", False),
        (READS_TABLES, "torch.load(path, weights_only=True)", False),
        (READS_PICKLES, "from pickle import loads", False),
        (READS_PICKLES, "torch.load(path, weights_only=True)", True),
        (READS_PICKLES, "torch.load(path)", False),
        (READS_PICKLES, "torch.load(path, weights_only=False)", False),
        (READS_PICKLES, "torch.load(path, weights_only=wanted)", False),
        (READS_PICKLES, "torch.load(path, weights_only=True, pickle_module=other)", False),
    ],
)
def test_a_call_that_unpickles_is_recognised(name: str, line: str, allowed: bool) -> None:
    assert (list(unpickles(Module(name, SOURCE, ast.parse(line)))) == []) is allowed


def test_no_drawer_for_everything() -> None:
    assert not [path for path in SOURCE.rglob("*.py") if path.stem in ("utils", "util", "common", "helpers", "misc")]


def test_every_module_says_what_it_is() -> None:
    assert not [str(module.path) for module in modules().values() if not ast.get_docstring(module.tree)]


def public_functions(module: Module) -> Iterator[tuple[str, str]]:
    """(class or '', name) of every function and method without a leading underscore."""
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield "", node.name
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield node.name, inner.name


def test_every_public_function_has_a_user() -> None:
    """Called in the sources from outside itself, or offered at the Python door; not by its own test alone."""
    # settings, torch, argparse, urllib
    called_by_others = {"mistakes", "forward", "backward", "error", "redirect_request"}
    called_by_others |= {"capture_signals", "handle_exit", "shutdown"}  # uvicorn
    called_by_others |= {"markdown", "allocate", "set_state"}  # make knobs, FSDP2, and how hosts meet
    door = {("hornbook", name) for name in ("fit", "list_runs", "load", "open_run", "prepare_text", "TrainedRun")} | {
        ("hornbook.infer.speaker", "Speaker")
    }
    used: set[str] = set()
    for module in modules().values():
        used |= uses_of(module.tree, "")
    for template in SOURCE.rglob("*.jinja"):
        used |= set(re.findall(r"\w+", template.read_text()))
    unused = {
        name
        for module in modules().values()
        for owner, name in public_functions(module)
        if name not in used | called_by_others and (module.name, owner or name) not in door
    }
    assert not unused


def uses_of(node: ast.AST, inside: str) -> set[str]:
    """Names that are read, except a function's own within itself."""
    if isinstance(node, ast.FunctionDef):
        inside = node.name
    used = set()
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        name = node.id if isinstance(node, ast.Name) else node.attr
        used = {name} - {inside}
    for child in ast.iter_child_nodes(node):
        used |= uses_of(child, inside)
    return used


def test_commands_configs_and_reports_need_no_torch() -> None:
    names = ["hornbook", "hornbook.cli", "hornbook.recipes"]
    looks_back = ("hornbook.runs", "hornbook.report")
    names += [name for name in modules() if name.endswith(".config") or name.startswith(looks_back)]
    names.remove("hornbook.report.fonts")
    program = f"import sys, {', '.join(names)}; print(*sorted({{'torch', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_there_are_no_more_knobs_than_somebody_could_read() -> None:
    outside_the_model = [knob for knob in knobs(RunConfig) if not knob.startswith("model.")]
    assert 30 < len(outside_the_model) <= MOST_KNOBS
