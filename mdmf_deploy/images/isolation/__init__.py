"""Run codecs in a child process with limits on memory, CPU and wall time, so that a hostile file costs only its row.

Children are started on demand, at most one per core, and reused. A child that is killed or crashes costs one request.
The parent trusts nothing that a child sends: every length and shape is checked, and nothing is ever unpickled.

`boxes` and `whole` decode images. Another task takes three steps:

1. Add it to TASKS in tasks.py: its name -> the module and function that the child imports at the first request.
2. Write that function, for example

       def frames(payload: bytes, channel: Channel) -> None:
           asked = channel.parameters(Asked)        # a msgspec.Struct
           times = channel.ask(Length(12.5), Times) # send a struct, wait for the parent's answer
           channel.send(Frame(360, 640))            # send a struct
           channel.send_array(pixels)               # send the bytes of a C-contiguous array

   An ImageError or MemoryError that it raises is raised in the parent, and so is any other exception, as "corrupt".
   It may print: standard output and error are collected. It may not write files larger than 1 MiB.
3. Talk to it from any thread of the parent, in the same order:

       with conversation("video", data, Asked(10), Allowance(memory=2**28, seconds=10), "mp4") as child:
           length = child.receive(Length)
           child.send(Times([0.0, 1.2]))
           frame = child.receive(Frame)             # check its values before they are used
           pixels = child.array((frame.height, frame.width, 3))
       child.messages                               # lines that the codec's libraries printed

The block raises ImageError too_slow, too_much_memory, corrupt (the decoder crashed) or whatever the task raised, and
Ended if its owner has ended (owners.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mdmf_deploy.images.limits import ReadLimits

if TYPE_CHECKING:
    import msgspec

    from mdmf_deploy.images.containers import Container
    from mdmf_deploy.images.crops import Box
    from mdmf_deploy.images.isolation.conversation import Allowance, Conversation
    from mdmf_deploy.images.raster import Decoded, DecodedBoxes

# The imports below are late, because a run without isolated formats starts no process.


def boxes(container: Container, place: Callable[[int, int], Sequence[Box]], limits: ReadLimits) -> DecodedBoxes:
    """Decode the boxes that `place(height, width)` returns in a child process. Safe to call from many threads.

    Raises ImageError, and Ended if the thread's owner ends.
    """
    from mdmf_deploy.images.isolation import image

    return image.boxes(container, place, limits)


def whole(container: Container, limits: ReadLimits) -> Decoded:
    """Decode a whole image in a child process. Safe to call from many threads. Raises like `boxes`."""
    from mdmf_deploy.images.isolation import image

    return image.whole(container, limits)


def conversation(
    task: str, payload: bytes, parameters: msgspec.Struct, allowance: Allowance, label: str
) -> AbstractContextManager[Conversation]:
    """Start a task of TASKS in a free child. The block talks to it in the task's own order.

    payload: bytes that the task gets.  label: what the file is, for error messages.
    """
    from mdmf_deploy.images.isolation import conversation as talks

    return talks.conversation(task, payload, parameters, allowance, label)
