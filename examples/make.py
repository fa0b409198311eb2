"""Make examples/photographs and examples/generated again. Needs scikit-image, scikit-learn and a training run.

    python examples/make.py RUN

RUN: the folder that `mdmf train` left for the starter. Its autoencoders are used. Both halves of a pair go through the
same last step (at most 512 pixels per side, JPEG quality 92, 4:2:0), so that only the decoder's traces tell them apart.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from mdmf_deploy.bundle.recipe import load_recipe
from mdmf_deploy.images.decode import decode
from mdmf_deploy.tasks.train.autoencoders import AutoencoderNet, autoencoder_name, reconstruct
from mdmf_deploy.tasks.train.pairs import Treatment, treat

HERE = Path(__file__).parent
SOURCES = {
    "astronaut": files("skimage.data") / "astronaut.png",
    "cat": files("skimage.data") / "chelsea.png",
    "coffee": files("skimage.data") / "coffee.png",
    "rocket": files("skimage.data") / "rocket.jpg",
    "palace": files("sklearn.datasets.images") / "china.jpg",
    "flower": files("sklearn.datasets.images") / "flower.jpg",
}
LAST_STEP = Treatment(scale=1.0, quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    autoencoders = load_recipe("starter").training.pairs.autoencoders
    for folder in ("photographs", "generated"):
        (HERE / folder).mkdir(exist_ok=True)
    for turn, (name, source) in enumerate(SOURCES.items()):
        photograph = Image.fromarray(decode(source.read_bytes()).pixels)
        photograph.thumbnail((512, 512), Image.Resampling.LANCZOS)
        pixels = np.asarray(photograph)
        autoencoder = autoencoders[turn % len(autoencoders)]
        net = AutoencoderNet(autoencoder)
        [weights] = (run / "autoencoders").glob(f"{autoencoder_name(autoencoder)}*.safetensors")
        state = load_file(weights)
        net.load_state_dict({key: value for key, value in state.items() if key != "psnr"})
        generated = reconstruct(net.eval(), pixels, autoencoder.factor)
        (HERE / "photographs" / f"{name}.jpg").write_bytes(treat(pixels, LAST_STEP))
        (HERE / "generated" / f"{name}-{autoencoder_name(autoencoder)}.jpg").write_bytes(treat(generated, LAST_STEP))


if __name__ == "__main__":
    main()
