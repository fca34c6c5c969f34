"""Images that stay in their files are trained on alike, whoever decodes them, and whenever."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_folders import pixels
from PIL import Image
from test_data_torchvision import write_imagenet
from torch import Tensor, nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms import v2
from toy import Memory, make_task, same, snapshot

from advprune import data
from advprune.batches import Batch, batches
from advprune.data import Files, ImageSet, Loaded, Reading, Stream
from advprune.data.loading import ahead
from advprune.data.registry import open_source
from advprune.data.splits import split
from advprune.errors import OutOfMemory
from advprune.repro import ImageRandom, derive
from advprune.train import Schedule, fit

SIDE, PER_CLASS, COUNT = 24, 20, 4
READING = Reading(SIDE)


def write_photographs(root: Path) -> str:
    for half, first in (("train", 0), ("test", 1000)):
        for label, name in enumerate(("ants", "bees", "cats")):
            folder = root / half / name
            folder.mkdir(parents=True)
            for i in range(PER_CLASS):
                seed = first + 100 * label + i
                image = Image.fromarray(pixels(seed, 26 + i, 50 - i, 3))
                image.save(folder / f"{i:02} ä.jpg")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def load(spec: str, stream: bool = True, **options: object) -> Loaded:
    given = {"data_dir": Path("nowhere"), "reading": READING, **options}
    return data.load(spec, stream=stream, **given)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def streamed(photographs: str) -> Loaded:
    return load(photographs)


def stream_of(images: ImageSet) -> Stream:
    assert isinstance(images.train, Stream)
    return images.train


def by(workers: int, images: ImageSet) -> ImageSet:
    train = stream_of(images)
    return replace(images, train=replace(train, files=Files(train.files.root, workers)))


def epoch(images: ImageSet, number: int = 0, count: int = COUNT, first: int = 0) -> list[Batch]:
    return list(batches(images, 3, number, count, first=first))


def equal(some: list[Batch], others: list[Batch]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )


def test_all_but_the_training_images_is_as_in_memory(photographs: str, streamed: Loaded) -> None:
    kept = load(photographs, stream=False)
    for name in ("val", "calib", "test"):
        for field, tensor in kept.splits[name].tensors.items():
            assert torch.equal(streamed.splits[name].tensors[field], tensor), (name, field)
    train = stream_of(streamed)
    assert torch.equal(train.labels, kept.train.labels)
    assert torch.equal(train.indices, kept.train.indices)
    assert len(train) == len(kept.train)
    # As measured, and exactly so.
    assert torch.equal(train.images, kept.train.images)
    assert torch.equal(train.first(5).images, kept.train.images[:5])
    assert torch.equal(train.subset(torch.tensor([7, 2])).labels, kept.train.labels[[7, 2]])
    assert streamed.mean_std() == kept.mean_std()
    assert streamed.shape == kept.shape
    assert (kept.augment, streamed.augment) == ("crop-flip", "resized-crop-flip")


def test_an_image_is_seen_as_torchvision_would_crop_and_mirror_it(
    photographs: str, streamed: Loaded
) -> None:
    order = split(open_source(photographs, Path(), READING), 0, None, None)["train"]
    root = Path(photographs.removeprefix("folder:"))
    paths = sorted((root / "train").rglob("*.jpg"))
    crop = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])
    seen = 0
    for batch in epoch(streamed, number=1):
        assert batch.images.shape == (len(batch.labels), 3, SIDE, SIDE)
        seen += len(batch.labels)
    assert seen == len(order)
    (whole,) = epoch(streamed, number=1, count=1)
    first = torch.randperm(
        len(order), generator=torch.Generator().manual_seed(derive(3, "order", 1))
    )[:5]
    for place, row in enumerate(first.tolist()):
        identity = order[row]
        draw = ImageRandom(derive(3, "images", 1), identity[None]).fork("augment").bits(1)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(int(draw))
            expected = crop(Image.open(paths[int(identity)]))
        assert torch.equal(whole.images[place], v2.functional.pil_to_tensor(expected) / 255)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_processes_changes_no_bit(workers: int, streamed: Loaded) -> None:
    expected = epoch(by(0, streamed))
    assert equal(epoch(by(workers, streamed)), expected)
    for first in range(COUNT):
        assert equal(epoch(by(workers, streamed), first=first), expected[first:])


def test_an_image_does_not_depend_on_its_batch_but_on_epoch_and_seed(streamed: Loaded) -> None:
    alone = by(0, streamed)

    def images(number: int, count: int) -> Tensor:
        return torch.cat([batch.images for batch in epoch(alone, number, count)])

    assert torch.equal(images(0, 1), images(0, 7))
    train = stream_of(alone)
    rows = torch.tensor([3, 1, 4])
    drawn = [train.pixels(rows, seed) for seed in (5, 5, 6)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(train.pixels(rows[1:], 5), drawn[0][1:])


def test_a_survey_that_wants_images_as_they_are_sees_them_as_measured(streamed: Loaded) -> None:
    found = batches(by(0, streamed), 3, 0, COUNT, augmented=False)
    order = torch.cat([batch.images for batch in found])
    (whole,) = batches(
        replace(streamed, train=stream_of(streamed).subset(slice(None))), 3, 0, 1, augmented=False
    )
    assert torch.equal(order, whole.images)


def test_nothing_is_drawn_from_the_global_generator(streamed: Loaded) -> None:
    for workers in (0, 1):
        state = torch.get_rng_state()
        epoch(by(workers, streamed))
        assert torch.equal(torch.get_rng_state(), state)


def test_small_and_grey_images_are_not_cropped(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(pixels(i + ord(name), 8, 8)).save(tmp_path / name / f"{i}.png")
    images = load(f"folder:{tmp_path}", reading=Reading())
    assert images.augment == "none"
    assert images.shape == (1, 8, 8)
    train = stream_of(images)
    assert torch.equal(train.pixels(torch.arange(4), 1), train.first(4).images)


def test_imagenet(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "imagenet")
    kept, found = (
        load("imagenet", stream, data_dir=tmp_path, reading=Reading(32)) for stream in (False, True)
    )
    assert data.root_of("imagenet", tmp_path) == tmp_path / "imagenet"
    assert found.classes == kept.classes
    # Grey and CMYK photographs are colour, as in memory.
    assert torch.equal(stream_of(found).images, kept.train.images)
    assert found.mean_std() == kept.mean_std()
    assert len(epoch(by(0, found))) == COUNT


# What is stored


def test_what_is_stored_comes_back_and_says_nothing_of_the_place(
    photographs: str, streamed: Loaded, tmp_path: Path
) -> None:
    moved = write_photographs(tmp_path / "elsewhere")
    again = load(moved)
    data.save(replace(streamed, name="same"), tmp_path / "a")
    data.save(replace(again, name="same"), tmp_path / "b")
    for file in ("data.safetensors", "data.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    found = data.read(tmp_path / "a", Files(tmp_path / "elsewhere", 0))
    assert found.digest == streamed.digest
    assert equal(epoch(found), epoch(by(0, streamed)))
    assert data.root_of(photographs, Path()) == Path(photographs.removeprefix("folder:"))


# Who decodes


def test_no_process_is_left_when_the_images_are_no_longer_wanted(streamed: Loaded) -> None:
    with closing(batches(by(2, streamed), 3, 0, COUNT)) as some:
        next(some)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_a_process_that_is_ended_from_outside_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Seconds between looks at the processes: else this waits for the five that torch takes.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))

    def die(part: Tensor) -> Tensor:
        os._exit(9)

    with pytest.raises(
        OutOfMemory, match=r"was ended .*; give it more, or .*--data-workers"
    ) as told:
        list(ahead(die, [torch.zeros(1)], 1, pinned=False))
    assert "\n" not in str(told.value)


def who(part: Tensor) -> Tensor:
    return torch.tensor([os.getpid()])


def test_a_request_to_end_is_left_to_the_parent() -> None:
    """Schedulers ask every process of a run, and the parent has a step to save first."""
    made = ahead(who, [torch.zeros(1)] * 20, 1, pinned=False)
    worker = int(next(made))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    assert {int(pid) for pid in made} == {worker}


def test_no_process_outlives_a_parent_that_is_killed() -> None:
    """It would hold the locks of the run."""
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        made = ahead(who, [torch.zeros(1)] * 20, 1, pinned=False)
        os.write(writing, str(int(next(made))).encode())
        signal.pause()
        os._exit(1)
    worker = int(os.read(reading, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.02)
    assert not alive(worker)
    os.close(reading)
    os.close(writing)


def alive(process: int) -> bool:
    """Whether it runs; a zombie, which nobody has waited for, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_default_to_one_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advprune.data.loading.cores", lambda: 1)
    made = ahead(who, [torch.zeros(1)] * 3, None, pinned=False)
    (worker,) = {int(pid) for pid in made}
    assert worker != os.getpid()


# Training


class Small(nn.Sequential):
    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(
                nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 3)
            )


@pytest.mark.parametrize("name", ["natural", "free"])
def test_training_is_the_same_whoever_decodes_and_resumes_anywhere(
    name: str, streamed: Loaded
) -> None:
    schedule = Schedule(epochs=2, batch_size=16, lr=0.01)
    task = replace(make_task(name=name), shape=streamed.shape)
    net, memory = Small(), Memory(every=1)
    expected = fit(net, by(0, streamed), task, schedule, memory).history
    for step, workers in (0, 2), (4, 1), (12, 0):
        again = Small()
        saved = memory.saves.get(step)
        assert fit(again, by(workers, streamed), task, schedule, Memory(saved)).history == expected
        assert same(snapshot(again), snapshot(net))
