"""Runs the notebooks of this folder and keeps their outputs: python notebooks/execute.py

What belongs to one machine stays out: messages on standard error, times, and the kernel's version.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parent


def main() -> None:
    """Run every notebook from the top and write it back."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # more threads wait for each other on a busy machine
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
