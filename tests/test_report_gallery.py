"""The gallery shows what was really attacked, says how much of it there is, and shows it truly."""

import base64
import io
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_nets import digit_net, digits
from engines import Engine, Info
from PIL import Image
from torch import Tensor, nn

from advprune.types import Threat
from deploy.gallery import FLIPS, SHOWN, Gallery, choose
from deploy.pictures import SIDE, difference, eight_bits, png
from deploy.replay import Targets
from deploy.suites import Settings
from deploy.verify import Verification, verify

THREAT = Threat(0.1)
SPLIT = digits(80)
SLIGHT = Settings(steps=5, restarts=1, queries=5, fmn=5, health=5)


def coarse() -> nn.Module:
    """What 8 bits do to a network, and much more of it."""
    net = deepcopy(digit_net(THREAT))
    for parameter in net.parameters():
        parameter.data = (parameter.data * 4).round() / 4
    return net


@cache
def verified() -> tuple[Verification, Engine, Engine]:
    fp32 = Engine(digit_net(THREAT))
    int8 = Engine(coarse(), Info(precision="int8"))
    twins = {"finetuned": digit_net(THREAT), "int8-twin": coarse()}
    engines = {"fp32": fp32, "int8": int8}
    return verify(twins, engines, SPLIT, THREAT, "d", SLIGHT), fp32, int8


def gallery() -> Gallery:
    found = verified()[0].gallery
    assert found is not None
    return found


def was_shown(engine: Engine, image: np.ndarray) -> bool:
    return any((batch == image).all(axis=(1, 2, 3)).any() for batch in engine.shown)


def test_every_image_was_shown_to_both_engines_and_they_answered_that() -> None:
    _, *engines = verified()
    shown = gallery()
    assert len(shown.said["items"]) == len(shown.clean) == len(shown.adversarial) > SHOWN
    counts = [len(engine.shown) for engine in engines]
    for row, item in enumerate(shown.said["items"]):
        clean, adversarial = shown.clean[row], shown.adversarial[row]
        place = SPLIT.indices.tolist().index(item["index"])
        assert np.array_equal(clean, SPLIT.images[place].numpy())
        assert item["label"] == SPLIT.labels[place]
        for number, engine in enumerate(engines):
            assert was_shown(engine, adversarial)
            asked = {"clean": clean.astype(np.float32) / 255, "attacked": adversarial}
            for kind, pixels in asked.items():
                assert engine.predict(pixels[None]).argmax() == item[kind][number]
            engine.shown = engine.shown[: counts[number]]
        away = np.abs(adversarial - clean.astype(np.float32) / 255).max()
        assert item["distance"] == pytest.approx(away, abs=1e-7) and away <= THREAT.eps + 1e-6


def test_each_image_shows_what_it_is_shown_for() -> None:
    for item in gallery().said["items"]:
        label, before, after = item["label"], item["clean"], item["attacked"]
        assert (item["attack"] is None) == (item["why"] == "clean")
        assert {
            "clean": before[0] != before[1],
            "int8": before[1] == label != after[1] and after[0] == label,
            "float": before[0] == label != after[0] and after[1] == label,
            "class": after[0] != after[1],
            "broken": before[1] == label != after[1],
        }[item["why"]], item


def test_counts_are_those_of_the_verdicts() -> None:
    verification, fp32, int8 = verified()
    counts = gallery().said["counts"]
    worst = [np.array(verification.verdicts[name]["worst"]) for name in ("fp32", "int8")]
    pixels = (SPLIT.images / 255).numpy()
    clean = [engine.predict(pixels).argmax(axis=1) for engine in (fp32, int8)]
    assert counts["clean"] == (clean[0] != clean[1]).sum() > 0
    assert counts["int8"] == (worst[0] & ~worst[1]).sum() > 0
    assert counts["float"] == (worst[1] & ~worst[0]).sum()
    right = clean[1] == SPLIT.labels.numpy()
    assert counts["broken"] == (right & ~worst[1]).sum() > SHOWN
    assert max(counts[why] for why in FLIPS) <= counts["flipped"]
    assert counts["flipped"] <= min(sum(counts[why] for why in FLIPS), len(SPLIT))


def test_what_is_shown_is_the_first_of_each_and_never_by_chance() -> None:
    items = gallery().said["items"]
    flipped = [item for item in items if item["why"] != "broken"]
    broken = [item for item in items if item["why"] == "broken"]
    assert (len(flipped), len(broken)) == (SHOWN, SHOWN)
    assert len({item["index"] for item in flipped}) == SHOWN, "an image comes once"
    order = SPLIT.indices.tolist()
    for why in (*FLIPS, "broken"):
        places = [order.index(item["index"]) for item in items if item["why"] == why]
        assert places == sorted(places)
    reasons = [FLIPS.index(item["why"]) for item in flipped]
    assert reasons == sorted(reasons)
    before = gallery().file()
    verified.cache_clear()
    assert gallery().said["items"] == items
    assert gallery().file() == before


def step(net: nn.Module, eps: float) -> Tensor:
    """One step of that length against a network."""
    x = (SPLIT.images / 255).requires_grad_(True)
    (slope,) = torch.autograd.grad(F.cross_entropy(net(x), SPLIT.labels), x)
    return (x + eps * slope.sign()).detach().clamp(0, 1)


def test_of_several_candidates_the_nearest_that_shows_it_is_shown() -> None:
    net, other = digit_net(THREAT), coarse()
    engines = {"fp32": Engine(net), "int8": Engine(other, Info(precision="int8"))}
    targets = Targets({"finetuned": net}, engines, SPLIT, THREAT, 512)
    sizes = {"far": 0.1, "near": 0.06, "tiny": 0.001, "also near": 0.06}
    candidates = {name: step(other, eps) for name, eps in sizes.items()}
    logits = {name: targets.logits(images, THREAT) for name, images in candidates.items()}
    survived = [targets.survivors(answers) for answers in logits.values()]
    worst = {name: torch.stack([row[name] for row in survived]).all(0) for name in engines}
    found = choose(targets, candidates, logits, worst)
    assert found is not None
    broken = [item for item in found.said["items"] if item["why"] == "broken"]
    seen = set()
    for item in broken:
        place = SPLIT.indices.tolist().index(item["index"])
        fooling = [
            name
            for name, images in candidates.items()
            if other(images[place][None]).argmax() != SPLIT.labels[place]
        ]
        assert item["attack"] == min(fooling, key=lambda name: sizes[name])
        seen.add(item["attack"])
    assert {"far", "near"} <= seen and "also near" not in seen


def test_where_there_is_no_pair_of_engines_there_is_no_gallery() -> None:
    engines = {"fp32": Engine(digit_net(THREAT))}
    alone = verify({"finetuned": digit_net(THREAT)}, engines, SPLIT.first(8), THREAT, "d", SLIGHT)
    assert alone.gallery is None


def test_engines_that_agree_have_flipped_nothing() -> None:
    net = digit_net(THREAT)
    engines = {"fp32": Engine(net), "int8": Engine(net, Info(precision="int8"))}
    same = verify({"finetuned": net}, engines, SPLIT.first(20), THREAT, "d", SLIGHT).gallery
    assert same is not None
    assert same.said["counts"]["flipped"] == 0
    assert {item["why"] for item in same.said["items"]} <= {"broken"}


def decoded(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 1, 5), (3, 64, 40)])
def test_a_picture_has_the_pixels_of_its_image(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    shown = decoded(png(image))
    assert np.array_equal(shown.reshape(*shape[1:], -1).transpose(2, 0, 1), image)


def test_a_large_image_is_averaged_down() -> None:
    image = np.zeros((3, 2 * SIDE, 4 * SIDE), np.uint8)
    image[0, :, : 2 * SIDE] = 200
    shown = decoded(png(image))
    assert shown.shape == (SIDE // 2, SIDE, 3)
    assert (shown[:, : SIDE // 2, 0] == 200).all() and not shown[:, SIDE // 2 :].any()


def test_a_difference_is_grey_where_nothing_was_added() -> None:
    clean = np.full((1, 2, 2), 51, np.uint8)  # 0.2
    added = np.array([[[0.0, 0.05], [-0.1, 0.1]]], np.float32)
    shown, factor = difference(clean, added + np.float32(0.2))
    assert factor == pytest.approx(5)
    assert shown.tolist() == [[[128, 191], [0, 255]]]
    nothing, factor = difference(clean, clean.astype(np.float32) / 255)
    assert (nothing == 128).all() and factor == 1


def test_pixels_on_a_screen_have_eight_bits() -> None:
    assert eight_bits(np.array([0, 0.5, 1, 1.0000001], np.float32)).tolist() == [0, 128, 255, 255]
