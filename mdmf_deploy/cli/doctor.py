"""`mdmf doctor`: the abilities of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mdmf_deploy.cli.console import print_json
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
        typer.echo("\n".join(_lines(diagnosis)))
    if not diagnosis.can_run:
        raise typer.Exit(1)


def _lines(diagnosis: Diagnosis) -> list[str]:
    machine = diagnosis.machine
    limit = "" if machine.core_limit is None else f", container limit {machine.core_limit:g}"
    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"
    lines = [
        f"mdmf-deploy {diagnosis.version} on {machine.python}, {machine.system}",
        f"decoder     {diagnosis.decoder}",
        f"cpu         {machine.cpu} ({' '.join(machine.cpu_features) or 'no known features'})",
        f"cores       {machine.cores}{limit}",
        f"memory      {memory}",
        f"gpu         {'; '.join(machine.gpus) or 'none that nvidia-smi names'}",
        "",
        "runtimes",
    ]
    for runtime in diagnosis.runtimes:
        state = f"ready {runtime.version or ''}" if runtime.missing is None else f"no: {runtime.missing}"
        lines.append(f"  {runtime.name:<12} {state}".rstrip())
        if runtime.enable:
            lines.append(f"  {'':<12} {runtime.enable}")
    lines += ["", "extras"]
    for extra in diagnosis.extras:
        parts = (f"{name} {version or 'missing'}" for name, version in extra.packages.items())
        lines.append(f"  {extra.name:<12} {', '.join(parts)}")
        if extra.enable:
            lines.append(f"  {'':<12} {extra.enable}")
    lines += ["", "bundles in the package"]
    for bundle in diagnosis.bundles:
        calibrated = "calibrated" if bundle.calibrated else "not calibrated"
        whole = f"whole, {calibrated}, id {(bundle.bundle_id or '')[:12]}"
        lines.append(f"  {bundle.name:<12} {bundle.problem or whole}")
    return lines + [f"note: {note}" for note in diagnosis.notes]
