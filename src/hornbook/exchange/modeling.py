"""The model for transformers' trust_remote_code, in one file that needs torch and transformers and nothing else.

In: the sources of model/, as they are, and a template with what transformers asks of a model.  Out: the file's text.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import jinja2

from hornbook.model import activations, attention, config, gpt, layers, loss, norms, positions, rms_norm, rotary

TEMPLATE = "modeling_hornbook.py.jinja"
# In the order in which each needs those before it.
MODULES = (activations, norms, rms_norm, positions, rotary, layers, attention, loss, gpt)
# Of ModelConfig, what weighs knobs and counts: nothing to who only runs the model.
LEFT_OUT = ("mistakes", "fits_vocabulary", "n_params", "flops_per_token")


def modeling_file() -> str:
    """The same bytes whenever the sources are the same."""
    imports: set[str] = set()
    sources = [_without_imports(module, imports) for module in MODULES]
    own = [getattr(each, "fget", each) for name, each in vars(config.ModelConfig).items() if name not in LEFT_OUT]
    implied = [inspect.getsource(each) for each in own if getattr(each, "__module__", "") == config.__name__]
    form = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name(TEMPLATE).read_text("utf-8")
    )
    return form.render(
        imports="\n".join(sorted(imports)),
        width_multiple=config.WIDTH_MULTIPLE,
        implied="\n".join(implied).rstrip(),
        sources="\n\n\n".join(sources),
    )


def _without_imports(module: ModuleType, imports: set[str]) -> str:
    """A module's source; what it imports from elsewhere is noted, and what it imports of ours is in the same file."""
    text = inspect.getsource(module)
    tree, gone = ast.parse(text), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
            ours = start.startswith("from hornbook.")
            if ours or node in tree.body:
                gone.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                imports.update(f"{start} {ast.unparse(each)}" for each in node.names if not ours)
    kept = "\n".join(line for number, line in enumerate(text.splitlines(), 1) if number not in gone)
    return f"# {module.__name__}\n" + re.sub(r"\n{4,}", "\n\n\n", kept).strip()
