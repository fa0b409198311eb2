"""Are the figures of `mdmf evaluate` scikit-learn's, whatever the layout of the data set?

    python benchmarks/layouts.py DATA [--bundle starter] [--images 40]

Builds every layout from images of DATA in a temporary folder, runs `mdmf evaluate LAYOUT -o rows.jsonl --json` on each,
and computes AUROC, AP and ACC again from the rows, by scikit-learn.

DATA: a folder with real/SOURCE/ and generated/GENERATOR/. Of each source, at most --images are taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import header, table

from mdmf_deploy.images.inputs import in_folder

# The tests build the same layouts.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.data_layouts import LAYOUTS, scikit_figures

FIGURES = ("auroc", "ap", "acc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--images", type=int, default=40, metavar="N")
    options = parser.parse_args()
    header()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = _images(options.data, options.images, Path(folder) / "links")
        for name, build in LAYOUTS.items():
            root = Path(folder) / name.replace(", ", "-")
            rows.append(_compared(name, build(images, root), options.bundle, Path(folder)))
    means = (f"mean {figure.upper()}" for figure in FIGURES)
    print(table(rows, ("layout", "images", "generators", *means, "largest difference")))


def _images(data: Path, most: int, links: Path) -> dict[str | None, list[Path]]:
    """Link to some images of each source under names that differ, and sort them by generator."""
    links.mkdir()
    found: dict[str | None, list[Path]] = {None: []}
    for kind in ("real", "generated"):
        for source in sorted(path for path in (data / kind).iterdir() if path.is_dir()):
            for path in list(in_folder(source).paths)[:most]:
                link = links / f"{source.name}-{path.name}"
                link.symlink_to(path.resolve())
                found.setdefault(None if kind == "real" else source.name, []).append(link)
    return found


def _compared(name: str, dataset: Path, bundle: str, folder: Path) -> tuple[object, ...]:
    rows = folder / "rows.jsonl"
    command = ["mdmf", "evaluate", str(dataset), "--bundle", bundle, "--allow-overlap", "-o", str(rows), "--json"]
    run = subprocess.run([sys.executable, "-m", "mdmf_deploy", *command[1:]], stdout=subprocess.PIPE, check=False)
    if run.returncode not in (0, 3):
        sys.exit(f"layouts.py: {' '.join(command)} exited with {run.returncode}")
    [found] = json.loads(run.stdout)["tables"]
    written = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    expected = scikit_figures(written)
    differences = [
        abs(found["generators"][generator][figure]["value"] - values[figure])
        for generator, values in expected.items()
        for figure in FIGURES
    ]
    means = [f"{found['mean'][figure]['value']:.4f}" for figure in FIGURES]
    return (name, len(written), len(expected), *means, f"{max(differences):.1e}")


if __name__ == "__main__":
    main()
