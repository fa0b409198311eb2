"""The tasks that a child process runs."""

from __future__ import annotations

# name -> module and its function, (payload, channel) -> None
TASKS: dict[str, tuple[str, str]] = {
    "image": ("mdmf_deploy.images.isolation.image_task", "decode"),
    "manifest": ("mdmf_deploy.images.provenance.manifest_task", "read"),
    "video": ("mdmf_deploy.images.isolation.video_task", "sample"),
    "video frame": ("mdmf_deploy.images.isolation.video_task", "frame"),
}
