"""Images as PNG files inside a page, and the difference of two of them made visible."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # pixels: larger images are averaged down to it, or a page would weigh megabytes


def png(pixels: NDArray[np.uint8]) -> str:
    """The address of an image that lies in the page itself.

    Args:
        pixels: (C, H, W), grey with one channel, else of the first three.
    """
    plain = pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0]
    image = Image.fromarray(np.ascontiguousarray(plain))
    if max(image.size) > SIDE:
        factor = SIDE / max(image.size)
        width, height = (max(round(side * factor), 1) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def eight_bits(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Pixels in [0, 1] as a screen shows them."""
    return np.rint(image * 255).clip(0, 255).astype(np.uint8)


def difference(
    clean: NDArray[np.uint8], adversarial: NDArray[np.floating]
) -> tuple[NDArray[np.uint8], float]:
    """What an attack added, around middle grey, and how many times it was amplified.

    The largest change of a pixel becomes black or white.
    """
    added = adversarial - clean.astype(np.float32) / 255
    largest = float(np.abs(added).max())
    factor = 0.5 / largest if largest else 1.0
    return eight_bits(0.5 + factor * added), factor
