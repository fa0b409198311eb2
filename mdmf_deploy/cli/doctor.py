"""`mdmf doctor`: the abilities of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mdmf_deploy.cli.console import print_json, print_lines
from mdmf_deploy.cli.layout import wrapped
from mdmf_deploy.cli.options import AsJson

if TYPE_CHECKING:
    from mdmf_deploy.tasks.doctor import Diagnosis


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run.

    For everything else it gives the command that would enable it. It installs and changes nothing. Exit code 1 if no
    runtime can be used.

    Example: mdmf doctor --json
    """
    from mdmf_deploy.tasks.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis)
    else:
        print_lines(_lines(diagnosis))
    if not diagnosis.can_run:
        raise typer.Exit(1)


def _lines(diagnosis: Diagnosis) -> list[str]:
    machine = diagnosis.machine
    limit = "" if machine.core_limit is None else f", container limit {machine.core_limit:g}"
    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"
    rows = [
        ("version", f"mdmf-deploy {diagnosis.version} on {machine.python}, {machine.system}"),
        ("decoder", diagnosis.decoder),
        ("cpu", f"{machine.cpu} ({' '.join(machine.cpu_features) or 'no known features'})"),
        ("cores", f"{machine.cores}{limit}"),
        ("memory", memory),
        ("gpu", "; ".join(machine.gpus) or "none that nvidia-smi names"),
    ]
    lines = wrapped(" ".join(diagnosis.summary))
    for note in diagnosis.notes:
        lines += wrapped(note, "note: ")
    lines.append("")
    for name, text in rows:
        lines += wrapped(text, f"{name:<12}")
    lines += ["", "runtimes"]
    for runtime in diagnosis.runtimes:
        state = f"ready {runtime.version or ''}" if runtime.missing is None else f"no: {runtime.missing}"
        lines += _entry(runtime.name, state.rstrip(), runtime.enable)
    lines += ["", "extras"]
    for extra in diagnosis.extras:
        parts = (f"{name} {version or 'missing'}" for name, version in extra.packages.items())
        lines += _entry(extra.name, ", ".join(parts), extra.enable)
    lines += ["", "bundles in the package"]
    for bundle in diagnosis.bundles:
        calibrated = "calibrated" if bundle.calibrated else "not calibrated"
        whole = f"whole, {calibrated}, id {(bundle.bundle_id or '')[:12]}"
        lines += _entry(bundle.name, bundle.problem or whole, None)
    return lines


def _entry(name: str, text: str, enable: str | None) -> list[str]:
    below = wrapped(enable, " " * 15) if enable else []
    return [*wrapped(text, f"  {name:<12} "), *below]
