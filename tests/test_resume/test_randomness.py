"""Random numbers that follow from the place in a training alone."""

import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from dskd_mm.resume import randomness
from dskd_mm.resume.randomness import NumberedBatch, NumberedBatches, seed_batches, seed_generators


class Noise(Dataset):
    """What the three generators draw, and the index."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        drawn = [index, random.random(), np.random.rand(), float(torch.rand(())), float(torch.rand(()))]
        return torch.tensor(drawn, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _same_generators_afterwards() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def epochs(which: range, seed: int = 0, **kwargs: Any) -> Tensor:
    """What a loader of batches of 3 gives in some epochs, after other draws than the last time."""
    loader = DataLoader(Noise(), batch_size=3, **kwargs)
    batches = seed_batches(loader, seed)
    assert batches is not None and seed_batches(loader, seed) is batches and len(loader) == 4
    found = []
    for epoch in which:
        random.random(), np.random.rand(), torch.rand(3)
        batches.passes = epoch
        found.append(torch.cat(list(loader)))
    return torch.stack(found)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_data_depend_on_epoch_and_batch_but_not_on_workers_or_what_came_before(workers: int) -> None:
    options: dict[str, Any] = dict(num_workers=workers, persistent_workers=True) if workers else {}
    expected = epochs(range(3))
    assert torch.equal(epochs(range(3), **options), expected)
    assert torch.equal(epochs(range(2, 3), **options), expected[2:])  # as in a resumed run
    # No number is drawn twice: not in another batch, epoch, process or with another seed.
    assert expected[..., 1:].unique().numel() == expected[..., 1:].numel()
    assert not torch.isin(epochs(range(3), seed=1, **options)[..., 1:], expected).any()


def test_processes_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = epochs(range(2))
    monkeypatch.setattr(randomness, 'get_rank', lambda: 1)
    assert not torch.isin(epochs(range(2))[..., 1:], expected).any()


def test_seeding_follows_from_the_key() -> None:
    def draw(*key: int) -> tuple[float, ...]:
        seed_generators(*key, accelerator=True)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(2**62 - 1, 0, 5) == draw(2**62 - 1, 0, 5)
    values = {draw(0, 0, 1, step) for step in range(50)} | {draw(0, 0, 2, 0, step) for step in range(50)}
    assert len(values) == 100


def test_a_pass_may_begin_behind_its_first_batches() -> None:
    batches = NumberedBatches(BatchSampler(range(10), 3, drop_last=False))
    batches.skip(2)
    assert [(list(batch), batch.number) for batch in batches] == [([6, 7, 8], (0, 2)), ([9], (0, 3))]
    iter(batches)  # torch asks for some that it never uses
    assert [batch.number for batch in batches] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    batches.skip(4)
    assert list(batches) == [] and len(batches) == 4
    assert batches.batch_size == 3 and not hasattr(batches, 'nothing')


def test_an_endless_pass_goes_on_where_it_was() -> None:
    def numbered() -> NumberedBatches:
        return NumberedBatches(BatchSampler(InfiniteSampler(range(7), seed=3), 2, drop_last=False))

    first, resumed = numbered(), numbered()
    whole = [next(batches) for batches in [iter(first)] for _ in range(9)]
    resumed.skip(5)
    again = [next(batches) for batches in [iter(resumed)] for _ in range(4)]
    assert [(batch, batch.number) for batch in again] == [(batch, batch.number) for batch in whole[5:]]


def test_what_is_sent_to_workers_survives_pickling() -> None:
    batch = pickle.loads(pickle.dumps(NumberedBatch([4, 2], (3, 1))))
    assert batch == [4, 2] and batch.number == (3, 1)
    batches = pickle.loads(pickle.dumps(NumberedBatches([[1], [2]])))
    assert list(batches) == [[1], [2]]


def test_a_data_set_that_gets_whole_batches_keeps_doing_so() -> None:
    class Whole(Noise):
        def __getitems__(self, indices: list[int]) -> list[Tensor]:
            return [torch.cat([self[index] for index in indices])]

    loader = DataLoader(Whole(), batch_size=5, collate_fn=lambda items: items)
    batches = seed_batches(loader, 0)
    assert batches is not None
    first = [batch[0] for batch in loader]
    batches.passes = 0
    assert torch.equal(torch.stack(first), torch.stack([batch[0] for batch in loader])) and first[0].shape == (25,)


def test_iterable_data_sets_are_left_alone() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    for size in (None, 4):
        loader = DataLoader(Stream(), batch_size=size)
        assert seed_batches(loader, 0) is None
        assert [int(value) for batch in loader for value in torch.as_tensor(batch).flatten()] == [0, 1, 2, 3]
