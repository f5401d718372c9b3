"""Let random numbers follow from the place in a training alone: a resumed run draws what it would have drawn."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset


def seed_generators(*key: int, accelerator: bool = False) -> None:
    """Seed the global generators of Python, numpy and torch.

    Args:
        key (int): Numbers, not negative, that everything drawn afterwards follows from.
        accelerator (bool): Whether to seed torch's generators of all devices and not only that of the CPU. Defaults to False.
    """
    python, numpy, first, second = (int(word) for word in np.random.SeedSequence(key).generate_state(4))
    random.seed(python)
    np.random.seed(numpy)
    seed = (first << 32 | second) >> 1
    if accelerator:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


# What tells apart the keys of both; numpy takes keys that differ by zeros at their end for one.
IN_MODEL, IN_DATA = 1, 2


class NumberedBatch(list):
    """Indices of a batch that know which one it is.

    Args:
        indices (list[int]): The indices.
        number (tuple[int, int]): Of the pass through the data, and of the batch in it.
    """

    def __init__(self, indices: list[int] = (), number: tuple[int, int] = (0, 0)) -> None:  # type: ignore[assignment]
        super().__init__(indices)
        self.number = number


class NumberedBatches:
    """A batch sampler that numbers what another one gives, and skips what a resumed run has seen already.

    Args:
        batches (Any): The batch sampler of a data loader. Other attributes are looked up in it.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.passes = 0
        self._skipped = 0

    def skip(self, count: int) -> None:
        """Leave out the first batches of the next pass, which costs no loading."""
        self._skipped = count

    def __iter__(self) -> Iterator[NumberedBatch]:
        # Counted when the first batch is asked for: with workers torch makes an iterator that it throws away.
        number, skipped = self.passes, self._skipped
        self.passes, self._skipped = number + 1, 0
        for index, batch in enumerate(self.batches):
            if index >= skipped:
                yield NumberedBatch(batch, (number, index))

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


class SeededItems:
    """How a data loader gets a batch from a data set (torch calls it ``__getitems__``): seeded by the number of the batch.

    The samples of a batch thereby do not depend on what the same process has drawn before: not on the number of workers, and
    not on whether they are those of a resumed run.

    Args:
        dataset (Any): The data set.
        key (tuple[int, ...]): What numbers follow from besides that of the batch.
    """

    def __init__(self, dataset: Any, key: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.key = key
        self.own = getattr(dataset, '__getitems__', None)

    def __call__(self, indices: list[int]) -> Any:
        seed_generators(*self.key, *getattr(indices, 'number', (0, 0)))
        return [self.dataset[index] for index in indices] if self.own is None else self.own(indices)


def seed_batches(loader: DataLoader, seed: int) -> NumberedBatches | None:
    """Let what a data loader draws follow from seed, rank, pass and batch alone.

    Args:
        loader (DataLoader): A data loader whose data set is indexed. It is changed.
        seed (int): The seed.

    Returns:
        NumberedBatches | None: Its new batch sampler; None if there are no indices, as with an iterable data set: nothing is
        changed then.
    """
    batches = loader.batch_sampler
    if isinstance(batches, NumberedBatches):
        return batches
    if batches is None or isinstance(loader.dataset, IterableDataset):
        return None
    numbered = NumberedBatches(batches)
    # torch refuses to assign another batch sampler, as it may contradict the other arguments. This one does not.
    vars(loader)['batch_sampler'] = numbered
    loader.dataset.__getitems__ = SeededItems(loader.dataset, (seed, get_rank(), IN_DATA))  # type: ignore[attr-defined]
    return numbered
