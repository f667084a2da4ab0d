"""The notebook of the examples runs from start to end."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in shown)
    assert any(out.get("data", {}).get("text/plain", "").startswith("Array(0.598") for out in shown)
