"""The model's side: vLLM's encoder makes the embeddings of an image's whole run, and selection shortens it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from globalcom2.core.groups import all_of, places_of
from globalcom2.core.layout import Layout
from globalcom2.core.scores import similarity
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.integrations.vllm.memory import Memory, digest
from globalcom2.integrations.vllm.options import PARTS, Options, announce
from globalcom2.integrations.vllm.processing import FIELD, ServedFamily


class Pass(NamedTuple):
    """One pass of the encoder over some images."""

    seen: dict[str, list[Any]]
    """What hooks noted, by the name that they noted it under."""
    runs: list[Tensor]
    """Per image, the embeddings of its whole run."""
    counts: list[int]
    """Per image, how many views the tower saw."""

    def all_views(self) -> Tensor:
        """The embeddings (views, tokens, dim) in the tower's order, where runs have nothing but views in that order."""
        return torch.cat([run.unflatten(0, (count, -1)) for run, count in zip(self.runs, self.counts, strict=True)])


class Watch:
    """Keeps what hooks see of one pass of the encoder, and nothing at other times."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] | None = None

    def __enter__(self) -> dict[str, list[Any]]:
        self.seen = {}
        return self.seen

    def __exit__(self, *error: object) -> None:
        self.seen = None

    def note(self, name: str, value: Any) -> None:
        """Keep `value` under a name, if a pass is being watched. Hooks call this."""
        if self.seen is not None:
            self.seen.setdefault(name, []).append(value)


class ShortModel:
    """Mixin for a family's model class.

    Attributes:
        family: What processor and model agree on; set by `short_runs`.
        flat: Names of fields with one entry per view. Other fields have one per image.
        shared: Names of fields that belong to no image.
        watch: Keeps what the hooks see.
        saliency: The `score_type` of `Views`, under another name: vLLM has a `score_type` that means something else.
        options: The engine's settings.
        room: Visual tokens that an uncompressed engine would encode at once.
        memory: Places that images kept before.
    """

    family: ServedFamily
    flat: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    config: Any
    watch: Watch
    saliency: str
    options: Options
    room: int
    memory: Memory

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        compilation = vllm_config.compilation_config
        if compilation.compile_mm_encoder or compilation.cudagraph_mm_encoder:
            raise InputError(
                "compile_mm_encoder and cudagraph_mm_encoder must be off with globalcom2, got one of them on: a replayed "
                "graph shows no scores. Leave them off, or set VLLM_PLUGINS='' to run without globalcom2."
            )
        # These are neither modules nor parameters, so they stay out of nn.Module's registries.
        self.__dict__["watch"] = Watch()
        self.__dict__["memory"] = Memory()
        self.__dict__["options"] = Options.of(self.config, self.family.scores)
        self.__dict__["saliency"] = self.options.score(self.family.scores)
        self.__dict__["room"] = vllm_config.scheduler_config.max_num_batched_tokens
        if not vllm_config.parallel_config.rank:  # one line for an engine, not one for each of its processes
            announce(self.options, type(self))
        if not vllm_config.model_config.multimodal_config.get_limit_per_prompt("image"):
            return  # an engine for text alone builds no tower
        self.install()

    def install(self) -> None:
        """Put hooks on the modules whose inputs `scores` and `features` need; they call `self.watch.note`."""

    def scores(self, made: Pass) -> Tensor:
        """Scores (views, tokens) in the tower's order, of the type `saliency`."""
        return similarity(self.features(made))

    def features(self, made: Pass) -> Tensor:
        """Features (views, tokens, dim) in the tower's order: those that `tower_features` of the family's adapter has."""
        raise NotImplementedError

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:
        """Values of one image's views, (views, tokens, ...) in the tower's order, with the thumbnail first."""
        return views

    def short_run(self, run: Tensor, kept: Tensor, extra: dict[str, Any]) -> Tensor:
        """Embeddings of the places that stay; `kept` is bool (places,) on the host."""
        return run[indices(kept, run.device)]

    def view_counts(self, fields: dict[str, Any], layouts: list[Layout]) -> list[int]:
        """How many views of each image the tower sees."""
        return [layout.views for layout in layouts]

    @torch.no_grad()
    def embed_multimodal(self, **fields: Any) -> Any:  # noqa: D102
        described = fields.pop(FIELD, None)
        if described is None:
            return super().embed_multimodal(**fields)
        rows = [tuple(row.tolist()) for row in described]
        layouts = [self.family.layout(self.config, *two) for _, *two in rows]
        short: list[Tensor] = []
        for number, part in self._parts(fields, layouts):
            images = slice(len(short), len(short) + number)
            short += self._shortened(part, layouts[images], rows[images])
        return short

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights as vLLM does. What images kept with others is forgotten."""
        self.memory.clear()
        loaded: set[str] = super().load_weights(weights)  # type: ignore[misc]
        return loaded

    def _parts(self, fields: dict[str, Any], layouts: list[Layout]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Cut a batch of images into parts that an uncompressed engine would encode at once.

        The scheduler counts short runs, so it sends more images in one go than memory was profiled for.

        Yields:
            The number of images in a part, and their fields.
        """
        counts = self.view_counts(fields, layouts)
        first = view = 0
        while first < len(layouts):
            last = first + 1
            while last < len(layouts) and sum(len(x.slots) for x in layouts[first : last + 1]) <= self.room:
                last += 1
            views = sum(counts[first:last])
            part: dict[str, Any] = {}
            for name, value in fields.items():
                own = slice(view, view + views) if name in self.flat else slice(first, last)
                part[name] = value if name in self.shared else value[own]
            yield last - first, part
            first, view = last, view + views

    def _shortened(self, fields: dict[str, Any], layouts: list[Layout], rows: list[tuple[int, ...]]) -> list[Tensor]:
        """The embeddings of each image's short run; one layout and one row of `FIELD` per image."""
        ratios = [parts / PARTS for parts, *_ in rows]
        counts = self.view_counts(fields, layouts)
        extra = {name: fields.pop(name) for name in list(fields) if name.startswith("globalcom2_")}
        digests = torch.stack([digest(own) for own in self._pixels(fields, counts, layouts)])
        with self.watch as seen:
            runs = list(super().embed_multimodal(**fields))
        views = self._views(Pass(seen, runs, counts), layouts)
        kept: dict[int, Tensor] = {}
        for layout, ratio in dict.fromkeys(zip(layouts, ratios, strict=True)):
            same = [i for i, pair in enumerate(zip(layouts, ratios, strict=True)) if pair == (layout, ratio)]
            stacked = {name: torch.stack([own[i] for i in same]) for name, own in views.items()}
            if ratio == 1.0:  # images within a limit in tokens
                places = places_of(all_of(layout, len(same), runs[0].device), layout)
            else:
                places = self._places(stacked, layout, ratio)
            kept |= zip(same, places, strict=True)
        ordered = [kept[i] for i in range(len(runs))]
        # The host waits for the device here, once for all images.
        masks = torch.cat(ordered).cpu().split([len(own) for own in ordered])
        images = zip(digests.tolist(), rows, strict=True)
        masks = [self.memory.settled(image, mask) for image, mask in zip(images, masks, strict=True)]
        return [
            self.short_run(run, masks[i], {name: value[i] for name, value in extra.items()})
            for i, run in enumerate(runs)
        ]

    def _pixels(self, fields: dict[str, Any], counts: list[int], layouts: list[Layout]) -> Iterator[Any]:
        """What the tower sees of each image, less views that only fill it up."""
        name = next(name for name in fields if name.startswith("pixel_values"))
        begin = 0
        for i, (count, layout) in enumerate(zip(counts, layouts, strict=True)):
            yield fields[name][begin : begin + count] if name in self.flat else fields[name][i][: layout.views]
            begin += count

    def _views(self, made: Pass, layouts: list[Layout]) -> dict[str, list[Tensor]]:
        """What the method reads: per name and image, (views, tokens, ...) with the thumbnail first."""
        # A tower that overflows must not stop the engine: it does not without compression either.
        read = {"scores": self.scores(made).float().nan_to_num()}
        if self.options.reads:
            read["features"] = self.features(made)
        return {
            name: [
                self.arrange(own[: layout.views], layout)
                for own, layout in zip(values.split(made.counts), layouts, strict=True)
            ]
            for name, values in read.items()
        }

    def _places(self, stacked: dict[str, Tensor], layout: Layout, ratio: float) -> Tensor:
        """Which places of the run stay, bool (images, places), from what `_views` made of images of one layout."""
        scores, features = stacked["scores"], stacked.get("features")
        more: dict[str, Tensor] = {}
        if features is not None:
            more = {"features": features} if "features" in self.options.reads else {"crop_features": features[:, 1:]}
        views = Views.of(layout, scores[:, 0], scores[:, 1:], self.saliency, **more)
        return places_of(self.options.select(views, ratio), layout)


def indices(mask: Tensor, device: torch.device) -> Tensor:
    """The indices at which a mask on the host is true, on `device`."""
    return mask.nonzero().flatten().to(device, non_blocking=True)
