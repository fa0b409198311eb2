"""The tasks "video" and "video frame": crops of frames sampled evenly, and one whole frame. Run in the child."""

from __future__ import annotations

from mdmf_deploy.images import video
from mdmf_deploy.images.isolation.child import Channel
from mdmf_deploy.images.isolation.video import AskedFrame, AskedVideo, FoundFrame, FoundVideo

# Imported before the limits of a request hold, because a library's own memory is not the file's.
video.opencv()


def sample(_: bytes, channel: Channel) -> None:
    """Sample a video."""
    asked = channel.parameters(AskedVideo)
    found = video.sample(asked.path, asked.format, asked.plan, asked.limits)
    channel.send(FoundVideo(found.times, found.height, found.width, found.notes))
    channel.send_array(found.crops)


def frame(_: bytes, channel: Channel) -> None:
    """Decode one frame."""
    asked = channel.parameters(AskedFrame)
    found = video.frame_at(asked.path, asked.format, asked.seconds, asked.limits)
    channel.send(FoundFrame(found.height, found.width))
    channel.send_array(found.pixels)
