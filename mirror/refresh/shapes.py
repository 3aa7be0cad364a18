"""In which shapes a repository's refs are asked for, and how much of each. Pure.

A shape is a fetch without its object ids: which ref, how far the reader is behind, how deep, in
what form. From a shape and a new tip follows the request that will come. What nobody asks for any
more is forgotten: a shape's weight halves with each push to its ref.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, RefName
from mirror.wire.requests import Deepen, FetchRequest

SHAPES_MAX: Final = 64
"""Per repository; the one asked for longest ago goes first."""

REFS_WATCHED_MAX: Final = 1000
"""Refs whose former tips are remembered, per repository: those that changed last."""

BEHIND_MAX: Final = 3
"""How many pushes a reader may be behind for its shape to be known: most poll often enough."""

WEIGHT_MIN: Final = 0.2
"""A shape lighter than that is forgotten: asked for once, and then not for three pushes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of fetch.

    Attributes:
        ref: What is wanted; `None` for everything, as a clone wants it.
        behind: How many pushes ago the reader had the ref; 0 when it has nothing.
        is_shallow: Whether what it has is also where its history ends.
        depth: How deep the history is to be.
        filter: What it leaves out.
        thin: Whether it takes thin packs.
        ofs_delta: Whether it takes deltas by offset.
        include_tag: Whether it takes tags along.
    """

    ref: RefName | None
    behind: int
    is_shallow: bool
    depth: int | None
    filter: ObjectFilter | None
    thin: bool
    ofs_delta: bool
    include_tag: bool


class Shapes:
    """The shapes of one repository."""

    def __init__(self) -> None:
        self._weights: OrderedDict[Shape, float] = OrderedDict()
        self._former: OrderedDict[RefName, deque[ObjectId]] = OrderedDict()

    def note(self, shape: Shape) -> None:
        """Note that a shape was asked for."""
        self._weights[shape] = self._weights.get(shape, 0.0) + 1.0
        self._weights.move_to_end(shape)
        while len(self._weights) > SHAPES_MAX:
            self._weights.popitem(last=False)

    def moved(self, ref: RefName, old: ObjectId) -> None:
        """Note that a ref left its tip `old`."""
        tips = self._former.setdefault(ref, deque(maxlen=BEHIND_MAX))
        tips.appendleft(old)
        self._former.move_to_end(ref)
        while len(self._former) > REFS_WATCHED_MAX:
            self._former.popitem(last=False)

    def watched(self) -> Iterable[RefName]:
        """Return the refs that changed last."""
        return self._former.keys()

    def recognise(
        self, fetch: FetchRequest, ref: RefName | None, haves: tuple[ObjectId, ...]
    ) -> Shape | None:
        """Return the shape of a fetch.

        Args:
            fetch: What was asked.
            ref: The ref that the one want is the tip of; `None` when everything is wanted.
            haves: The common frontier of the wants and what the reader has.

        Returns:
            The shape, or `None` when it is not one that tells what comes next.
        """
        deepen = fetch.deepen
        if deepen.relative or deepen.since is not None or deepen.exclude:
            return None
        behind = self._behind(ref, haves)
        if behind is None:
            return None
        is_shallow = bool(fetch.shallow)
        if is_shallow and fetch.shallow != frozenset(haves):
            return None
        return Shape(
            ref=ref,
            behind=behind,
            is_shallow=is_shallow,
            depth=deepen.depth,
            filter=fetch.filter,
            thin=fetch.thin_pack,
            ofs_delta=fetch.ofs_delta,
            include_tag=fetch.include_tag,
        )

    def _behind(self, ref: RefName | None, haves: tuple[ObjectId, ...]) -> int | None:
        if not haves:
            return 0
        if len(haves) > 1 or ref is None:
            return None
        former = self._former.get(ref, ())
        return next((n for n, tip in enumerate(former, start=1) if tip == haves[0]), None)

    def expected(
        self, tips: Mapping[RefName, ObjectId], everything: tuple[ObjectId, ...]
    ) -> list[FetchRequest]:
        """Return the requests that will come for new tips, the likeliest first.

        Call `moved` for the refs first. The weights of their shapes are halved by this.

        Args:
            tips: The refs that changed, and what they are now.
            everything: All tips of the repository.
        """
        chosen = [shape for shape in self._weights if shape.ref is None or shape.ref in tips]
        chosen.sort(key=lambda shape: self._weights[shape], reverse=True)
        for shape in chosen:
            self._weights[shape] /= 2
            if self._weights[shape] < WEIGHT_MIN:
                del self._weights[shape]
        requests = (self._request(shape, tips, everything) for shape in chosen)
        return [request for request in requests if request is not None]

    def _request(
        self, shape: Shape, tips: Mapping[RefName, ObjectId], everything: tuple[ObjectId, ...]
    ) -> FetchRequest | None:
        wants, haves = everything, tuple[ObjectId, ...]()
        if shape.ref is not None:
            wants = (tips[shape.ref],)
            former = self._former.get(shape.ref, ())
            if shape.behind > len(former):
                return None
            haves = tuple(former)[shape.behind - 1 : shape.behind] if shape.behind else ()
        return FetchRequest(
            wants=wants,
            haves=haves,
            done=True,
            shallow=frozenset(haves) if shape.is_shallow else frozenset(),
            deepen=Deepen(depth=shape.depth),
            filter=shape.filter,
            thin_pack=shape.thin,
            ofs_delta=shape.ofs_delta,
            include_tag=shape.include_tag,
        )
