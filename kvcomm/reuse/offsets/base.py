"""What an offset model promises, and the book of all models of a session."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from kvcomm.kv import KV
from kvcomm.reuse.plan import Predictability

ANCHORS = "anchors"
NOTHING = KV(*2 * [torch.empty(1, 1, 0, 1)])


class OffsetModel(Protocol):
    """Learns and predicts the offsets of one placeholder of one template.

    An offset is true KV in the consumer's context minus base KV, both position-free, `[layers,
    kv_heads, tokens, head_dim]`. A model also learns the offset of the literal that follows the
    placeholder. `predictability` and `predict` change nothing but usage counters; `observe` takes
    ownership of its arguments. Layer 0 needs no offset: predictions are zero there.
    """

    def predictability(self, base: KV) -> Predictability:
        """Whether the offset of a placeholder with this base KV can be predicted, and why."""

    def predict(self, base: KV) -> KV:
        """The offset of the placeholder. Raises `ValueError` when nothing was learned."""

    def predict_literal(self, base: KV, tokens: int) -> KV:
        """The offset of the `tokens` of the literal behind a placeholder with this base KV.

        Raises `ValueError` when no literal of that length was learned.
        """

    def observe(self, base: KV, offset: KV, literal: KV) -> None:
        """Learn from one computed placeholder and the literal behind it."""

    def frozen(self) -> OffsetModel:
        """What predicts as this one does now, whatever it learns later. Shares its tensors."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything learned, as named tensors."""

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Replace what was learned by what `state` returned."""

    def merge(self, tensors: dict[str, torch.Tensor]) -> None:
        """Add what another model learned from other observations: its `state`.

        As if they had been observed here, after those already known. Raises `ValueError` for
        tensors that do not fit.
        """

    def take(self) -> dict[str, torch.Tensor]:
        """What was observed here since the last `take`, as `state` would say it, for others.

        Neither what was merged nor what was loaded. The first `take` returns nothing, and the model
        keeps what it observes from then on.
        """

    @property
    def samples(self) -> int:
        """How many observations the model can use."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything learned."""


def check_saved(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` for saved tensors that hold numbers nothing can be learned from."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"`{name}` holds numbers that are not finite")
        if not tensor.is_floating_point() and tensor.numel() and int(tensor.min()) < 0:
            raise ValueError(f"`{name}` holds negative counts")


class OtherShape(ValueError):
    """An offset model learned from KV of other layers, heads or dimensions."""

    def __init__(self) -> None:
        super().__init__("it was learned from KV of another shape")


def shape_of(kv: KV) -> tuple[int, int, int]:
    """Layers, KV heads and head dimension."""
    layers, heads, _, dim = kv.keys.shape
    return layers, heads, dim


NUMBER = re.compile(r"(@\d+)?$")
READ = "~read"
TAIL = re.compile(r"[_-]?\d+$")


def kind_of(name: str) -> str:
    """The kind a placeholder shares what it learns with: `passage_3` and `passage_1` are one."""
    return TAIL.sub("", NUMBER.sub("", name)) or name


def split_family(family: str) -> tuple[str, dict[str, float]]:
    """The name of a family, and the numbers that its models are made with."""
    name, _, numbers = family.partition(":")
    pairs = (pair.partition("=") for pair in numbers.split(",") if pair)
    return name, {key: int(n) if n.isdigit() else float(n) for key, _, n in pairs}


def label_of(family: str, name: str, number: int, *, read: bool = False) -> str:
    """What the model of the placeholder called `name`, the `number`-th of its template, is called.

    `read`: its base KV is from another prompt that read it.
    """
    label = str(number) if split_family(family)[0] == ANCHORS else kind_of(name)
    return label + READ if read else label


def labels_of(family: str, names: Sequence[str], messages: Container[str]) -> dict[str, str]:
    """What the models of a template's placeholders are called, by name.

    Those that are no `messages` are inputs that other prompts have read.
    """
    return {
        name: label_of(family, name, number, read=name not in messages)
        for number, name in enumerate(names)
    }


@dataclass
class Offsets:
    """All offset models of an engine, made when first needed.

    A family is a way to learn ("anchors", "linear"), and may say with which numbers
    ("anchors:gamma=0.1,capacity=40"). Models are kept per (family, template, label): anchors for
    every placeholder of a template by its number, the others for every placeholder kind. Base KV
    that was `read` in another prompt has other offsets than that of the text alone. What `budget`
    has no room for is forgotten template by template, the least recently asked first. `shared`:
    what its models observe is kept apart, to be taken. `like` is KV of one token, as the engine
    makes it. `versions` changes for every template that learns something.
    """

    families: Mapping[str, Callable[..., OffsetModel]]
    budget: Callable[[], float] = lambda: math.inf
    shared: bool = False
    like: KV | None = None
    models: dict[tuple[str, str, str], OffsetModel] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    # By template, family and label; replaced as a whole, so that other threads may read it.
    known: dict[str, Mapping[tuple[str, str], Predictability]] = field(default_factory=dict)
    _count: Iterator[int] = field(default_factory=partial(itertools.count, 1))
    _asked: dict[str, None] = field(default_factory=dict)  # templates, the latest last

    def learned(self, template: str) -> None:
        """Models of this template have learned something."""
        self.versions[template] = next(self._count)
        self.publish(template)

    def publish(self, template: str) -> None:
        """Say in `known` what models of this template can predict, whatever the texts."""
        self.known[template] = {
            (family, label): model.predictability(NOTHING)
            for (family, other, label), model in self.models.items()
            if other == template
        }

    def samples(self) -> dict[str, int]:
        """How many observations there are of each template."""
        found: dict[str, int] = defaultdict(int)
        for (_, template, _), model in self.models.items():
            found[template] += model.samples
        return found

    def of(
        self, family: str, template: str, name: str, number: int, *, read: bool = False
    ) -> OffsetModel:
        """The model of the placeholder called `name`, the `number`-th of its template."""
        return self.named(family, template, label_of(family, name, number, read=read))

    def named(self, family: str, template: str, label: str) -> OffsetModel:
        """The model with a label. Raises `KeyError` for an unknown family."""
        key = (family, template, label)
        if key not in self.models:
            self.models[key] = self.new(family)
        self._asked.pop(template, None)
        self._asked[template] = None
        return self.models[key]

    def new(self, family: str) -> OffsetModel:
        """A model that knows nothing yet. Raises `KeyError` for an unknown family."""
        name, numbers = split_family(family)
        model = self.families[name](**numbers)
        if self.shared:
            model.take()
        return model

    def merge(self, key: tuple[str, str, str], tensors: dict[str, torch.Tensor]) -> None:
        """Add to the model of a family, template and label what another one learned."""
        if key not in self.models:
            self.models[key] = self.new(key[0])
        self.models[key].merge(tensors)
        self.learned(key[1])

    def blank(self, family: str) -> Predictability:
        """What a model says that knows nothing."""
        return self.new(family).predictability(NOTHING)

    def check(self, model: OffsetModel) -> None:
        """Raise `OtherShape` for a model that did not learn from KV such as the engine's."""
        if self.like is None:
            return
        try:
            predicted = model.predict(self.like)
        except OtherShape:
            raise
        except ValueError:  # it does not know enough yet
            return
        except RuntimeError:
            raise OtherShape from None
        if shape_of(predicted) != shape_of(self.like):
            raise OtherShape

    def forget(self, template: str) -> None:
        """Drop what was learned of a template."""
        self._asked.pop(template, None)
        self.versions.pop(template, None)
        self.known.pop(template, None)
        for key in [key for key in self.models if key[1] == template]:
            del self.models[key]

    def trim(self) -> None:
        """Forget the templates that there is no room for."""
        while self.models and self.nbytes > self.budget():
            never = (template for _, template, _ in self.models if template not in self._asked)
            oldest = next(never, None) or next(iter(self._asked))
            self.forget(oldest)

    @property
    def nbytes(self) -> int:
        """Bytes of all models."""
        return sum(model.nbytes for model in list(self.models.values()))
