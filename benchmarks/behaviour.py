"""Record what a refactoring must not change, as a folder of text files to diff.

    python benchmarks/behaviour.py before --checkout ../old
    python benchmarks/behaviour.py after
    diff -r before after

It runs every command of a checkout on images that it draws itself, in an empty folder with an empty cache, and writes
down exit codes, both streams, every row and JSON document, and the hashes of what was made: bundles, rows, heat maps,
graphs, plans. Timings, paths of this machine and words that change from run to run are masked. It also writes down the
options of every command, the modules that `import mdmf_deploy.cli` loads, and the loggers. --files adds a folder of
odd files, whose rows are recorded too. Takes about 80 seconds on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "train",
    "export",
    "build",
    "verify",
    "bank",
    "calibrate",
    "detect",
    "evaluate",
    "benchmark",
    "inspect",
    "doctor",
)
RECIPE = """
name = "tiny"
summary = "A random model."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }
verification = { min_rank_correlation = 0.9, max_flipped_verdicts = 0.2, max_fpr_change = 0.2 }

[training]
steps = 3
batch = 4
split = { train = 0.6, validation = 0.2 }
gate = { min_kernel = 0.0, max_swapped_auroc = 1.0 }
"""
# Keys of a JSON document whose values depend on the clock.
TIMED = re.compile(r"^(ms_.*|images_per_second|.*seconds.*|built|created|elapsed|load_average|mean_ms|p\d+_ms)$")
MASKS = (
    (re.compile(r"\d[\d.,]*(e[+-]?\d+)? (images/s|MB/s|ms|s)\b"), r"<time> \2"),
    (re.compile(r"^images (a|per) second .*$", re.MULTILINE), "images per second <time>"),
    (re.compile(r"^mdmf: warning: noisy: .*\n", re.MULTILINE), ""),
    (re.compile(r"/bundles/starter|/bundle/shipped/starter"), "/starter"),
)
SURFACE = """
import json, sys
import click
from typer.main import get_command
from mdmf_deploy.cli import app
def walk(command):
    if hasattr(command, "commands"):
        return {name: walk(command.commands[name]) for name in sorted(command.commands)}
    return [[p.name, sorted(p.opts), sorted(p.secondary_opts), p.param_type_name, str(p.type), repr(p.default),
             p.required, p.multiple, p.nargs] for p in command.params]
print(json.dumps(walk(get_command(app)), indent=1))
"""
LOADED = """
import sys
before = set(sys.modules)
import mdmf_deploy.cli
names = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"mdmf_deploy"}
print("\\n".join(sorted(names)))
"""
PUBLIC = """
import dataclasses, inspect
import mdmf_deploy
from mdmf_deploy import Detector, MdmfError, Row
fields = getattr(Row, "__struct_fields__", None) or [field.name for field in dataclasses.fields(Row)]
print(fields)
print(inspect.signature(Detector))
print(sorted(name for name in vars(Detector) if not name.startswith("_")))
def below(kind):
    kinds = sorted(kind.__subclasses__(), key=lambda kind: kind.__name__)
    return {sub.__name__: [sub.exit_code, below(sub)] for sub in kinds}
import mdmf_deploy.errors
print(below(MdmfError))
import logging
with Detector("starter") as detector:
    pass
print(sorted(name for name in logging.root.manager.loggerDict if name.startswith("mdmf")))
"""


def drawn(seed: int, width: int, height: int) -> Image.Image:
    """A picture with the spectrum of a photograph."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    spectrum = np.fft.fft2(generator.standard_normal((3, height, width))) / np.maximum(frequency, 1 / width) ** 1.2
    texture = np.fft.ifft2(spectrum).real
    levels = 110 + generator.uniform(15, 40) * texture / texture.std() + generator.uniform(-25, 25, (3, 1, 1))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_inputs(folder: Path, checkout: Path, odd: Path | None) -> None:
    """Write images, recipes and lists to the folder, named after their contents."""
    for name, first, count, size in (
        ("reals", 0, 40, 260),
        ("small/real", 300, 30, 110),
        ("small/generated/one", 400, 24, 110),
    ):
        (folder / name).mkdir(parents=True)
        for seed in range(first, first + count):
            image = drawn(seed, size + seed % 3, size - seed % 5)
            image.save(folder / name / (f"{seed}.png" if seed % 2 else f"{seed}.jpg"))
    shutil.copytree(checkout / "examples", folder / "examples")
    shutil.copytree(checkout / "export" / "golden" / "decoding", folder / "golden")
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "broken.toml").write_text("name = 3")
    (folder / "list.txt").write_text("reals/0.jpg\nnowhere.jpg\n")
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "reals" / "0.jpg").read_bytes()[:4000])
    (folder / "set" / "real").mkdir(parents=True)
    (folder / "set" / "generated" / "made").mkdir(parents=True)
    for n in range(12):
        shutil.copy(folder / "reals" / f"{n}.{'png' if n % 2 else 'jpg'}", folder / "set" / "real")
    for path in sorted((folder / "examples" / "generated").iterdir()):
        shutil.copy(path, folder / "set" / "generated" / "made")
    if odd is not None:
        shutil.copytree(odd, folder / "odd", ignore=shutil.ignore_patterns("*.md", "*.csv"))


EXPORT = "export run/checkpoint.safetensors --recipe tiny.toml --reals small/real"


def runs() -> list[tuple[str, str]]:
    """(name, arguments of mdmf) in the order in which they depend on each other."""
    one = "examples/photographs/cat.jpg"
    return [
        *((f"help-{name}", f"{name} --help") for name in COMMANDS),
        *((f"help-bank-{name}", f"bank {name} --help") for name in ("build", "compress", "inspect")),
        ("help", "--help"),
        ("version", "--version"),
        ("no-command", ""),
        ("wrong-command", "detekt"),
        ("wrong-option", "detect --nope"),
        ("wrong-value", f"detect {one} --crops 0"),
        ("detect", "detect examples"),
        ("detect-json", "detect examples golden reals --json"),
        ("detect-csv", "detect examples -o rows.csv"),
        ("detect-jsonl", "detect examples golden -o rows.jsonl"),
        ("detect-parquet", "detect examples -o rows.parquet"),
        ("detect-suffix", "detect examples -o rows.xml"),
        ("detect-both", "detect examples --json -o rows.jsonl"),
        ("detect-openvino", "detect examples --json --runtime openvino"),
        ("detect-crops", "detect examples reals --json --crops 5"),
        ("detect-batch", "detect examples --json --batch-size 3 --threads 1"),
        ("detect-heatmaps", "detect examples --heatmaps maps"),
        ("detect-heatmaps-crops", "detect examples --heatmaps maps --crops 2"),
        ("detect-pixels", "detect examples --json --max-pixels 1000"),
        ("detect-bad", "detect text.jpg empty.png cut.jpg nowhere.jpg reals/0.jpg --json"),
        ("detect-list", "detect @list.txt --json"),
        ("detect-nothing", "detect small/none"),
        ("detect-glob", "detect reals/1*.png --json"),
        ("detect-fail-on", "detect examples --fail-on generated"),
        ("detect-quiet", f"detect {one} -q"),
        ("detect-bundle", f"detect {one} --bundle nowhere.mdmf"),
        ("detect-runtime", f"detect {one} --runtime nothing"),
        *((f"detect-{name}", f"detect {one} --runtime {name}") for name in ("tensorrt", "rtx", "cuda", "ort-tensorrt")),
        ("inspect", "inspect starter"),
        ("inspect-json", "inspect starter --json"),
        ("doctor", "doctor"),
        ("doctor-json", "doctor --json"),
        ("bank-inspect", "bank inspect starter"),
        ("bank-inspect-json", "bank inspect starter --json"),
        ("bank-shipped", "bank build starter reals"),
        ("bank-build", "bank build starter reals text.jpg -o bank.mdmf"),
        ("bank-build-json", "bank build starter reals -o bank2.mdmf --json"),
        ("calibrate-shipped", "calibrate starter reals"),
        ("calibrate", "calibrate starter reals --fpr 0.1 -o mine.mdmf"),
        ("calibrate-json", "calibrate starter reals --fpr 0.05 --fpr 0.2 -o mine2.mdmf --json"),
        ("calibrate-refused", "calibrate starter reals --fpr 0.001 -o few.mdmf"),
        ("calibrate-few", "calibrate starter reals --fpr 0.001 -o few.mdmf --force"),
        ("calibrate-exists", "calibrate starter reals --fpr 0.1 -o mine.mdmf"),
        ("calibrate-bank", "calibrate bank2.mdmf small/real --fpr 0.1 -o bank-mine.mdmf"),
        ("verify-bank", "verify bank.mdmf --runtime all"),
        ("detect-mine", "detect examples reals small/generated --bundle mine.mdmf --json"),
        ("detect-few", f"detect {one} --bundle few.mdmf --json"),
        ("compress", "bank compress mine.mdmf --points 64 -o small.mdmf"),
        ("compress-json", "bank compress mine.mdmf --max-error 0.05 -o small2.mdmf --json"),
        ("compress-loosely", "bank compress mine.mdmf --max-error 0.5 -o small3.mdmf --json"),
        ("bank-points", "bank build starter reals --points 100 -o points.mdmf"),
        ("detect-compressed", "detect examples --bundle small.mdmf --json"),
        ("inspect-compressed", "inspect small.mdmf --json"),
        ("train", "train small/real small/generated --recipe tiny.toml --train-backbone -o run --validate-every 2"),
        ("train-again", "train small/real small/generated --recipe tiny.toml --train-backbone -o run"),
        ("train-bad-recipe", "train small/real small/generated --recipe broken.toml -o run2"),
        ("export", f"{EXPORT} -o tiny.mdmf"),
        ("export-exists", f"{EXPORT} -o tiny.mdmf"),
        (
            "export-int8",
            f"{EXPORT} -o int8.mdmf --precision int8 --json",
        ),
        (
            "export-fp16",
            f"{EXPORT} -o fp16.mdmf --precision fp16 --json",
        ),
        ("export-few", "export run/checkpoint.safetensors --recipe tiny.toml --reals golden -o few2.mdmf"),
        ("verify", "verify tiny.mdmf --runtime all --no-record"),
        ("verify-json", "verify tiny.mdmf --runtime onnxruntime -o verified.mdmf --json"),
        (
            "verify-checkpoint",
            "verify tiny.mdmf small/real --checkpoint run/checkpoint.safetensors --recipe tiny.toml --no-record",
        ),
        ("calibrate-tiny", "calibrate tiny.mdmf small/generated --fpr 0.2 -o tiny-mine.mdmf"),
        ("detect-tiny", "detect small/real --bundle tiny-mine.mdmf --json"),
        ("evaluate", "evaluate set"),
        ("evaluate-json", "evaluate set --condition jpeg:75 --condition resize:0.5,jpeg:90 --json -o judged.jsonl"),
        ("evaluate-gate", "evaluate set --min-auroc 0.999"),
        ("build-rtx", "build tiny.mdmf --flavour rtx --compute-capability 8.9 --json"),
        ("build-tensorrt", "build tiny.mdmf"),
        ("build-flavour", "build tiny.mdmf --flavour cuda"),
        ("triton", "export mine.mdmf --triton models"),
        ("triton-json", "export tiny.mdmf --triton models2 --triton-device gpu --triton-batch 16 --json"),
        ("triton-exists", "export mine.mdmf --triton models"),
        ("benchmark-json", "benchmark starter --seconds 0.5 --json --images reals"),
        ("benchmark-csv", "benchmark starter --seconds 0.5 --scenario offline -o bench.csv --images reals"),
        ("benchmark-bad", "benchmark starter --scenario nothing"),
    ]


def masked(text: str, folder: Path, checkout: Path) -> str:
    # The environment may lie in the checkout.
    for path, name in ((folder, "<here>"), (Path(sys.prefix), "<prefix>"), (checkout, "<checkout>")):
        text = text.replace(str(path), name)
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text


def shape(value: Any) -> Any:
    """A document's keys and types, for those whose figures are timings."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__.replace("int", "number").replace("float", "number")


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "<time>" if TIMED.match(key) and item is not None else timeless(item)
            for key, item in value.items()
            if key != "README.md"  # the hash of a page of prose
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def documents(text: str, shapes: bool) -> str | None:
    """Return the text's JSON with timings masked, as one document or one per line. None if it is not JSON."""
    try:
        found = [json.loads(text)]
    except ValueError:
        try:
            found = [json.loads(line) for line in text.splitlines()]
        except ValueError:
            return None
    return "\n".join(json.dumps(shape(one) if shapes else timeless(one), indent=1) for one in found) if text else None


def record_file(path: Path) -> str:
    """A line on what a file holds: its hash, or its text's with timings masked."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and "bench" not in path.name:
        data = (documents(data.decode(), False) or "").encode()
    if path.suffix in (".parquet", ".cache", ".plan", ".md") or "bench" in path.name:
        return "made"
    if path.suffix in (".csv", ".png") and path.name not in ("rows.csv",) and "maps" not in path.parts:
        return "made"
    if path.name == "rows.csv":
        lines = [line.split(",") for line in data.decode().splitlines()]
        timed = {n for n, name in enumerate(lines[0]) if name.startswith("ms_")}
        data = "\n".join(",".join("" if n in timed else cell for n, cell in enumerate(line)) for line in lines).encode()
    return hashlib.sha256(data).hexdigest()


def parquet(path: Path) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = [{key: value for key, value in row.items() if not key.startswith("ms_")} for row in table.to_pylist()]
    return f"{table.schema}\n{json.dumps(rows, indent=1, default=str)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write, which must not exist")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose package to run; by default this one's")
    parser.add_argument("--files", type=Path, help="a folder of odd files to detect, too")
    asked = parser.parse_args()
    checkout, out = asked.checkout.resolve(), asked.output.resolve()
    out.mkdir(parents=True)
    # Always the same place: some of what is made names it.
    folder = Path(tempfile.gettempdir()).resolve() / "mdmf-behaviour"
    folder.mkdir()
    try:
        make_inputs(folder, checkout, asked.files)
        inputs = set(folder.rglob("*"))
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "MDMF_CACHE": str(folder / "cache"),
            "HOME": str(folder / "home"),
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "PYTHONHASHSEED": "0",
        }
        (folder / "home").mkdir()

        def python(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
            )

        for name, source in (("options", SURFACE), ("loaded", LOADED), ("public", PUBLIC)):
            result = python("-c", source)
            (out / f"{name}.txt").write_text(result.stdout + masked(result.stderr, folder, checkout))
        listed = runs()
        if asked.files is not None:
            listed.append(("detect-odd", "detect odd --json"))
        for name, arguments in listed:
            result = python("-m", "mdmf_deploy", *arguments.split())
            text = documents(result.stdout, name == "benchmark-json") or result.stdout
            if name == "benchmark-csv":
                text = "timings"
            parts = (f"exit {result.returncode}", "-- stdout", text, "-- stderr", result.stderr)
            (out / f"{name}.txt").write_text(masked("\n".join(parts), folder, checkout))
            print(name, result.returncode, flush=True)
        (out / "parquet.txt").write_text(parquet(folder / "rows.parquet"))
        made = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and path not in inputs and folder / "home" not in path.parents
        )
        lines = [f"{path.relative_to(folder)} {record_file(path)}" for path in made]
        (out / "made.txt").write_text("\n".join(lines) + "\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
