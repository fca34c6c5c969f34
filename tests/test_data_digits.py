"""The shipped digits are those of scikit-learn, scaled to bytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import advprune.data as package
from advprune import data
from advprune.errors import Refused

NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def digits() -> data.ImageSet:
    return data.load("digits", data_dir=NOWHERE)


def test_equal_to_scikit_learn(digits: data.ImageSet) -> None:
    values, labels = load_digits(return_X_y=True)
    images = np.rint(np.reshape(values, (-1, 8, 8)) * 255 / 16)
    seen = []
    for split in digits.splits.values():
        order = split.indices.numpy()
        np.testing.assert_array_equal(split.images[:, 0].numpy(), images[order])
        np.testing.assert_array_equal(split.labels.numpy(), np.asarray(labels)[order])
        seen.append(order)
    assert sorted(np.concatenate(seen)) == list(range(1797))
    assert digits.shape == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == digits.train.indices.dtype == torch.int64
    assert digits.classes == tuple("0123456789")
    assert digits.augment == "none"


def test_sizes(digits: data.ImageSet) -> None:
    sizes = {name: len(split) for name, split in digits.splits.items()}
    # 20 % test; of the other 1,438, a tenth each for validation and calibration.
    assert sizes == {"train": 1152, "val": 143, "calib": 143, "test": 359}


def test_as_float_and_statistics(digits: data.ImageSet) -> None:
    images = data.as_float(digits.train.images)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    raw = digits.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_array_equal(images.numpy(), raw.astype(np.float32))
    mean, std = digits.mean_std()
    np.testing.assert_allclose(mean, [raw.mean()], rtol=1e-12)
    np.testing.assert_allclose(std, [raw.std()], rtol=1e-12)


def test_credit_is_shipped() -> None:
    folder = Path(package.__file__).parent
    credit = (folder / "digits.LICENSE.txt").read_text()
    assert "Alpaydin" in credit
    assert "CC BY 4.0" in credit
    file = folder / "digits.npz"
    assert (
        data.fingerprint("digits", NOWHERE, None) == hashlib.sha256(file.read_bytes()).hexdigest()
    )


def test_digits_have_one_size() -> None:
    with pytest.raises(Refused, match=r"digits: --image-size .* 8x8"):
        data.load("digits", data_dir=NOWHERE, reading=data.Reading(16))
