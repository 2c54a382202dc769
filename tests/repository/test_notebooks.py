"""Every notebook runs from top to bottom, and was committed with its outputs and without errors."""


import nbclient
import nbformat
import pytest
from helpers.places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def outputs(cells):
    """The kinds of output of each code cell; the number of messages of a stream is random."""
    return [sorted({out["output_type"] for out in cell.get("outputs", [])}) for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    committed = outputs(notebook.cells)
    assert any(committed), "commit the notebook with its outputs"
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()  # raises on the first error
    assert outputs(notebook.cells) == committed
