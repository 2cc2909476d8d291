"""Models by the name that timm, torchvision or transformers gives them, with random weights."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from ..errors import BadModel, Impossible, in_one_line
from ..experiment.model_source import BATCH, InputTensor, ModelSource
from ..plurals import counted
from . import losses
from .generation import Generation
from .models import Model
from .own_models import ImportedFunction, RandomBatch, needs_input
from .trees import Batch

IMAGE: Final = (3, 224, 224)
TOKENS: Final = 128
"""How long a text is, where the model takes one so long."""
SAMPLES: Final = 16_000
"""How long a sound is."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a library says of a model without building it."""

    factory: Callable[[], nn.Module]
    inputs: tuple[InputTensor, ...]
    batch: Callable[[int], Any] | None = None  # where no tensors of fixed shapes are taken
    head: str | None = None
    forward: inspect.Signature | None = None
    imports: tuple[str, ...] = ()
    generation: Generation | None = None


def model_of(source: ModelSource) -> Model:
    """Return the model that a source names; raise `BadModel` for what cannot be had."""
    described = _DESCRIBE[source.library](source)
    loss = ImportedFunction(source.loss, "loss") if source.loss else None
    batch: Callable[[int], Any]
    if source.batch:
        batch = ImportedFunction(source.batch, "batch")
    elif described.batch is not None and not source.input:
        batch = described.batch
    else:
        inputs = _merged(described.inputs, source.inputs)
        if not inputs:
            needs_input(source.build, described.forward)
        batch = RandomBatch(inputs)
    for part in (batch, loss):
        if isinstance(part, ImportedFunction):
            part.load()
    return Model(
        described.factory,
        batch,
        loss=loss or losses.automatic,
        head=source.head or described.head,
        batch_follows=isinstance(batch, RandomBatch) and batch.follows,
        about=f"{source.build} with {'its own' if source.pretrained else 'random'} weights",
        generation=described.generation,
        source=source,
        imports=described.imports,
    )


def _merged(
    described: Sequence[InputTensor], given: Sequence[InputTensor]
) -> tuple[InputTensor, ...]:
    """Return the inputs that a library describes, but for those that were given by name."""
    if any(not one.name for one in given):
        return tuple(given)
    named = {one.name: one for one in given}
    return tuple({**{one.name: one for one in described}, **named}.values())


def _library(source: ModelSource) -> Any:
    """Import a library; raise `BadModel` with what to install."""
    library = source.library
    if importlib.util.find_spec(library) is None:
        raise BadModel(
            f"model {source.build!r} needs {library}: pip install 'torch-gradbench[{library}]'"
        )
    try:
        return importlib.import_module(library)
    except (Exception, SystemExit) as error:  # its binary part may be of another torch
        raise BadModel(f"{library} cannot be imported: {in_one_line(error)}") from error


def _name(source: ModelSource, known: Iterable[str]) -> str:
    """Return the library's name for the model; raise `BadModel` where it has none such."""
    name, known = source.build.partition(":")[2], list(known)
    if name in known:
        return name
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {counted(len(known), 'other')}"
    raise BadModel(f"{source.library} has no model {name!r}: {hint}")


@dataclass(frozen=True, slots=True)
class TimmFactory:
    """A model of timm."""

    name: str
    pretrained: bool

    def load(self) -> object:
        """Import what builds it."""
        return importlib.import_module("timm")

    def __call__(self) -> nn.Module:
        """Return it."""
        timm: Any = self.load()
        module: nn.Module = timm.create_model(self.name, pretrained=self.pretrained)
        return module


def _timm(source: ModelSource) -> Description:
    timm = _library(source)
    full = source.build.partition(":")[2]
    name = _name(source, timm.list_models()) if "." not in full else full
    settings = timm.get_pretrained_cfg(name)
    size = IMAGE if settings is None else settings.input_size
    head = None if settings is None else settings.classifier
    return Description(
        TimmFactory(name, source.pretrained),
        (InputTensor(shape=(BATCH, *size)),),
        head=head if isinstance(head, str) else None,
        imports=("timm",),
    )


@dataclass(frozen=True, slots=True)
class TorchvisionFactory:
    """A model of torchvision."""

    name: str
    pretrained: bool

    def load(self) -> object:
        """Import what builds it."""
        return importlib.import_module("torchvision")

    def __call__(self) -> nn.Module:
        """Return it."""
        models = getattr(self.load(), "models")  # noqa: B009 # torchvision need not be here
        builder = models.get_model_builder(self.name)
        options: dict[str, Any] = {"weights": "DEFAULT" if self.pretrained else None}
        if "weights_backbone" in inspect.signature(builder).parameters and not self.pretrained:
            options["weights_backbone"] = None
        module: nn.Module = builder(**options)
        return module


_HEADS: Final = (
    (("resnet", "resnext", "wide_resnet", "regnet"), "fc"),
    (("googlenet", "inception", "shufflenet"), "fc"),
    (("vit_",), "heads"),
    (("swin",), "head"),
)
"""Heads of torchvision's classifiers by how their names begin; the others' is ``classifier``."""


def _torchvision(source: ModelSource) -> Description:
    models = _library(source).models
    name = _name(source, models.list_models())
    factory = TorchvisionFactory(name, source.pretrained)
    kind = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
    if kind.startswith("detection"):
        return Description(factory, (), batch=DetectionBatch(name))
    crop = _crop(models, name)
    if kind.startswith("video"):
        return Description(factory, (InputTensor(shape=(BATCH, 3, 16, crop, crop)),))
    image = InputTensor(shape=(BATCH, 3, crop, crop))
    if kind.startswith("optical_flow"):
        return Description(factory, (image, image))
    if kind.startswith("segmentation"):
        return Description(factory, (image,))
    plain = name.removeprefix("quantized_")
    head = next((path for starts, path in _HEADS if plain.startswith(starts)), "classifier")
    return Description(factory, (image,), head=head)


def _crop(models: Any, name: str) -> int:
    """Return the side of the images that a model was made for, as its weights say."""
    transforms = models.get_model_weights(name).DEFAULT.transforms
    crop = getattr(transforms, "keywords", {}).get("crop_size", IMAGE[-1])
    return int(crop if isinstance(crop, int) else crop[-1])


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """Images in a list, and targets with one box each, which training needs."""

    name: str
    side: int = 320
    keypoints: int = 17

    def __call__(self, size: int) -> Batch:
        """Return so many of both."""
        images = [torch.rand(3, self.side, self.side) for _ in range(size)]
        return Batch((images, [self._target() for _ in range(size)]))

    def _target(self) -> dict[str, torch.Tensor]:
        target = {
            "boxes": torch.tensor([[10.0, 10.0, self.side / 2, self.side / 2]]),
            "labels": torch.ones(1, dtype=torch.int64),
        }
        if "mask" in self.name:
            target["masks"] = torch.ones(1, self.side, self.side, dtype=torch.uint8)
        if "keypoint" in self.name:
            target["keypoints"] = torch.full((1, self.keypoints, 3), 20.0)
        return target


@dataclass(frozen=True, slots=True)
class TransformersFactory:
    """A model of transformers: by its type, by a folder with its configuration, by its name.

    A ``causal`` one scores the next token, whatever the configuration would have it do.
    """

    name: str
    pretrained: bool
    causal: bool = False

    def load(self) -> object:
        """Import what builds it."""
        return self._class_of(_configuration(self.name))

    def __call__(self) -> nn.Module:
        """Return it."""
        configuration = _configuration(self.name)
        kind = self._class_of(configuration)
        if self.pretrained:
            trained: nn.Module = kind.from_pretrained(self.name)
            return trained
        module: nn.Module = kind._from_config(configuration)
        return module

    def _class_of(self, configuration: Any) -> Any:
        return _causal_class(configuration) if self.causal else _class_of(configuration)


def _transformers(source: ModelSource) -> Description:
    _library(source)
    name = source.build.partition(":")[2]
    configuration = _configuration(name)
    kind = _class_of(configuration)
    forward = inspect.signature(kind.forward)
    return Description(
        TransformersFactory(name, source.pretrained),
        tuple(_described(configuration, kind, forward)),
        imports=(kind.__module__,),
        forward=forward.replace(parameters=list(forward.parameters.values())[1:]),
        generation=_generation(source, configuration),
    )


def _causal_class(configuration: Any) -> Any:
    """Return the class of a configuration that scores the next token; None where there is none."""
    known = importlib.import_module("transformers").MODEL_FOR_CAUSAL_LM_MAPPING
    return known.get(type(configuration), None)


def _generation(source: ModelSource, configuration: Any) -> Generation | None:
    vocabulary = getattr(configuration.get_text_config(), "vocab_size", None)
    if _causal_class(configuration) is None or vocabulary is None:
        return None
    name = source.build.partition(":")[2]
    return Generation(
        prefill=_prefill,
        decode=_decode,
        vocabulary=vocabulary,
        build=TransformersFactory(name, source.pretrained, causal=True),
    )


def _prefill(model: Any, tokens: torch.Tensor, _room: int) -> tuple[torch.Tensor, Any]:
    return _scores_and_cache(model(input_ids=tokens, use_cache=True))


def _decode(model: Any, token: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
    return _scores_and_cache(model(input_ids=token, past_key_values=cache, use_cache=True))


def _scores_and_cache(output: Any) -> tuple[torch.Tensor, Any]:
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise Impossible("it returns no past_key_values: there is no cache to make tokens with")
    return output.logits[:, -1], cache


def _configuration(name: str) -> Any:
    """Return a configuration: of a folder, a model type's defaults, or one that is published."""
    transformers = importlib.import_module("transformers")
    if Path(name).exists():
        return _read(transformers, name, local=True)
    if name in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[name]()
    try:
        return _read(transformers, name, local=True)  # it may be in the cache
    except BadModel:
        pass
    return _read(transformers, name, local=False)  # some kilobytes, and no weights


def _read(transformers: Any, name: str, *, local: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=local)
    except Exception as error:  # the hub's library has many kinds of its own
        close = get_close_matches(name, list(transformers.CONFIG_MAPPING), n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise BadModel(
            f"no configuration of {name!r} here or on the hub: give a model type such as "
            f"transformers:bert{hint}, or a folder with its config.json"
        ) from error


def _class_of(configuration: Any) -> Any:
    """Return the class that a configuration names, or else the plain model of its type."""
    transformers = importlib.import_module("transformers")
    for name in getattr(configuration, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    known: Mapping[Any, Any] = transformers.MODEL_MAPPING
    if type(configuration) not in known:
        raise BadModel(f"transformers has no plain model of type {configuration.model_type!r}")
    kind = known[type(configuration)]
    return kind[0] if isinstance(kind, tuple) else kind


def _described(configuration: Any, kind: Any, forward: inspect.Signature) -> Iterable[InputTensor]:
    """Yield the inputs that a model takes by its configuration and the names of its arguments."""
    wanted = {kind.main_input_name}
    if configuration.is_encoder_decoder:
        wanted.add("decoder_input_ids")
    if hasattr(configuration, "text_config") and hasattr(configuration, "vision_config"):
        wanted |= {"input_ids", "pixel_values"}
    for name in forward.parameters:
        if name in wanted and name in _TAKEN:
            made = _TAKEN[name](name, configuration)
            if made is not None:
                yield made


def _token_ids(name: str, configuration: Any) -> InputTensor | None:
    text = configuration.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    limits = ("max_position_embeddings", "n_positions", "max_target_positions")
    lengths = (getattr(text, limit, None) for limit in limits)
    longest = next((length for length in lengths if isinstance(length, int)), TOKENS)
    shape = (BATCH, min(TOKENS, longest))
    return InputTensor(name=name, shape=shape, dtype="int64", below=vocabulary)


def _pixels(name: str, configuration: Any) -> InputTensor | None:
    vision = getattr(configuration, "vision_config", configuration)
    side = getattr(vision, "image_size", IMAGE[-1])
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return InputTensor(name=name, shape=(BATCH, getattr(vision, "num_channels", IMAGE[0]), *sides))


def _spectrum(name: str, configuration: Any) -> InputTensor | None:
    bins = getattr(configuration, "num_mel_bins", None)
    frames = 2 * getattr(configuration, "max_source_positions", TOKENS)
    return InputTensor(name=name, shape=(BATCH, bins, frames)) if bins else None


def _wave(name: str, _configuration: Any) -> InputTensor | None:
    return InputTensor(name=name, shape=(BATCH, SAMPLES))


_TAKEN: Final[Mapping[str, Callable[[str, Any], InputTensor | None]]] = {
    "input_ids": _token_ids,
    "decoder_input_ids": _token_ids,
    "pixel_values": _pixels,
    "input_features": _spectrum,
    "input_values": _wave,
}
"""What arguments of these names are, of models of text, images and sound."""

_DESCRIBE: Final[Mapping[str, Callable[[ModelSource], Description]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
