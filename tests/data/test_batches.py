import pytest
import torch

from lightconv.data import Batches


def add_noise(images, generator):
    return images.float() + torch.rand(len(images), 1, 1, 1, generator=generator)


def batches(**options):
    """Shuffled batches of ten images; the pixels of each are its label."""
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2).contiguous()
    return Batches(images, torch.arange(10), **{"batch_size": 4, "transform": add_noise, "shuffle": True} | options)


def as_lists(iterable):
    """Pixels and labels of each batch."""
    return [(images.flatten().tolist(), labels.tolist()) for images, labels in iterable]


def test_every_image_once_per_epoch():
    loader = batches(transform=lambda x, g: x)
    assert len(loader) == 3
    labels = [label for _, y in loader for label in y.tolist()]
    assert sorted(labels) == list(range(10))
    assert labels != list(range(10))
    for images, y in loader:
        assert torch.equal(images[:, 0, 0, 0].long(), y)


def test_epochs_differ_and_seeds_repeat():
    first, second = batches(seed=1), batches(seed=1)
    epochs = [as_lists(first) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [as_lists(second) for _ in range(3)]
    assert epochs[0] != as_lists(batches(seed=2))


def test_order_ignores_the_global_seed():
    torch.manual_seed(1)
    expected = as_lists(batches())
    torch.manual_seed(2)
    assert as_lists(batches()) == expected


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resume_within_an_epoch(stop):
    epoch = 5
    whole = as_lists(batches(epoch=lambda: epoch))
    interrupted = batches(epoch=lambda: epoch)
    iterator = iter(interrupted)
    begun = [next(iterator) for _ in range(stop)]
    resumed = batches(epoch=lambda: epoch)
    resumed.load_state_dict(interrupted.state_dict())
    assert as_lists(begun) + as_lists(resumed) == whole


def test_stored_position_of_another_epoch():
    stored = batches(epoch=lambda: 3)
    next(iter(stored))
    fresh = batches(epoch=lambda: 4)
    fresh.load_state_dict(stored.state_dict())
    assert len(as_lists(fresh)) == 3


def test_processes_share_the_images():
    shards = [batches(rank=rank, world_size=3) for rank in range(3)]
    assert {len(shard) for shard in shards} == {1}  # training: equally many, 9 of the 10
    labels = [label for shard in shards for _, y in shard for label in y.tolist()]
    assert len(set(labels)) == 9
    shards = [batches(rank=rank, world_size=3, shuffle=False) for rank in range(3)]
    labels = [label for shard in shards for _, y in shard for label in y.tolist()]
    assert sorted(labels) == list(range(10))  # evaluation: all of them
