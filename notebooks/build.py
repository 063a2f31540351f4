"""Makes the notebooks from the sources beside them (jupytext's percent format), and perhaps runs them.

    python notebooks/build.py                    # every NAME.ipynb from its NAME.py; outputs stay while no code changes
    python notebooks/build.py --run 01_sample    # and with the outputs of a run here, pictures as small JPEGs

Needs the extra [test]. `tests/test_notebooks.py` fails where a notebook is not what its source makes.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
WIDTH, QUALITY = 800, 75  # of pictures that are kept


def sources() -> list[Path]:
    """The sources, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def read_source(path: Path) -> nbformat.NotebookNode:
    """A notebook without outputs; the same source always gives the same file."""
    made = jupytext.read(path, fmt="py:percent")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    made.nbformat, made.nbformat_minor = 4, 5
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number:02d}"
    return made


def run(notebook: nbformat.NotebookNode, folder: Path, environment: dict[str, str] | None = None) -> None:
    """Executes a notebook in a folder, top to bottom, outputs into it.

    Args:
        notebook: what to run; changed in place.
        folder: where its files go.
        environment: of its kernel; default this process's, and the clone's package without installing it.

    Raises:
        CellExecutionError: a cell failed.
    """
    if environment is None:
        paths = filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH")))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=place).execute(env=environment)


def keep_outputs(made: nbformat.NotebookNode, before: nbformat.NotebookNode) -> None:
    """Takes the outputs of an earlier version over, if its code is the same from top to bottom."""
    old, new = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (before, made))
    if [cell.source for cell in old] == [cell.source for cell in new]:
        for cell, same in zip(new, old):
            cell.outputs, cell.execution_count = same.outputs, same.execution_count


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Makes kept outputs small: pictures become JPEGs of at most `WIDTH` pixels; what went to stderr goes."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for data in (output["data"] for output in outputs if "data" in output):
            if "image/png" in data:
                data["image/jpeg"] = _jpeg(data.pop("image/png"))
        if cell.cell_type == "code":
            cell.outputs = outputs


def _jpeg(png: str) -> str:
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((WIDTH, 4 * WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Writes the notebooks that are named, by default all."""
    names = [path.stem for path in sources()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--run", action="store_true", help="execute them in runs/notebooks and keep what they show")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(names)):
        parser.error(f"no notebook is called {unknown[0]!r}; there are {', '.join(names)}")
    for path in sources():
        if chosen.names and path.stem not in chosen.names:
            continue
        notebook = read_source(path)
        if chosen.run:
            folder = FOLDER.parent / "runs" / "notebooks"
            folder.mkdir(parents=True, exist_ok=True)
            run(notebook, folder)
            shrink(notebook)
        elif path.with_suffix(".ipynb").exists():
            keep_outputs(notebook, nbformat.read(path.with_suffix(".ipynb"), as_version=4))
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
