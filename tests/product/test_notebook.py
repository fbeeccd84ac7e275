"""The notebook of `examples/` runs as it stands, and shows what it says."""

import os

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


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
