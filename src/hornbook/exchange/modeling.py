"""The model for transformers' trust_remote_code, in one file that needs torch and transformers and nothing else.

In: the sources of model/, as they are, and a template with what transformers asks of a model.  Out: the file's text.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import jinja2

from hornbook.model import activations, attention, config, gpt, layers, loss, norms, positions, rms_norm, rotary

TEMPLATE = "modeling_hornbook.py.jinja"
# In the order in which each needs those before it.
BEFORE_THE_CONFIG = (activations, norms, positions)
AFTER_THE_CONFIG = (rms_norm, rotary, layers, attention, loss, gpt)
# Of ModelConfig, what weighs knobs and counts, and goes to nobody who only runs the model.
LEFT_OUT = ("mistakes", "fits_vocabulary", "n_params", "flops_per_token")


def modeling_file() -> str:
    """The same bytes whenever the sources are the same."""
    imports: dict[str, set[str]] = defaultdict(set)
    before, after = (
        "\n\n".join(_without_imports(each, imports) for each in modules)
        for modules in (BEFORE_THE_CONFIG, AFTER_THE_CONFIG)
    )
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in imports.items() if module]
    form = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name(TEMPLATE).read_text("utf-8")
    )
    return form.render(
        imports="\n".join(sorted(imports[""]) + sorted(lines)),
        before_the_config=before,
        width_multiple=config.WIDTH_MULTIPLE,
        implied="\n".join(_implied()).rstrip(),
        after_the_config=after,
    )


def _without_imports(module: ModuleType, imports: dict[str, set[str]]) -> str:
    """A module's source; what it imports from elsewhere is noted, what it imports of ours stands above it."""
    lines = inspect.getsource(module).splitlines()
    tree, gone = ast.parse("\n".join(lines)), set[int]()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        ours = source.startswith("hornbook.")
        if ours or node in tree.body:
            gone.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if not ours and source != "__future__":
                names = [ast.unparse(each) for each in node.names]
                imports[source].update(names if source else [f"import {name}" for name in names])
    text = "\n".join(line for number, line in enumerate(lines, 1) if number not in gone).strip()
    text = re.sub(r"\n{4,}", "\n\n\n", text)
    return f"# {module.__name__.replace('.', '/')}.py\n{text}\n"


def _implied() -> list[str]:
    """The sources of what ModelConfig works out of its knobs."""
    own = [getattr(each, "fget", each) for name, each in vars(config.ModelConfig).items() if name not in LEFT_OUT]
    return [
        inspect.getsource(each)
        for each in own
        if inspect.isfunction(each) and each.__qualname__ == f"ModelConfig.{each.__name__}"
    ]
