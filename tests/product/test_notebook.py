"""The notebook of `examples/` runs as it stands, and shows what it says."""

import ast
import os
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


def test_what_it_imports():
    """All of it is there, under the names of the package."""
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    found = [ast.parse(cell.source).body for cell in notebook.cells if cell.cell_type == "code"]
    imports = [node for body in found for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "quickstart", "exec"), {})
    assert len(imports) >= 6


def test_one_name_of_the_trainers():
    """As a folder of the clone they would be a second copy, whose classes are not those of the package."""
    done = subprocess.run([sys.executable, "-c", "import training"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: in a clone too it is latent_cot.training")


@pytest.mark.slow
def test_quickstart(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": os.fspath(ROOT / "examples")}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    texts = [output["data"].get("text/plain", "") for output in shown]
    assert texts[0] == "['7+3*4-2+9=7', '2-9+4*6-3=9']" and "#7" in texts[1]
    by_iterations = eval(next(text for text in texts if text.startswith("{0: ")), {"__builtins__": {}})
    assert by_iterations[3] >= 0.97 and by_iterations[0] <= 0.5
    assert any("image/png" in output["data"] for output in shown)
