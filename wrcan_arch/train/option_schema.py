"""The schema of option files, the toolbox's keys included, and what in a file violates it.

The optimizer's section, and those from which a registry builds an object (networks, losses, metrics), are open here:
class_checks.py checks their other keys against the class's signature.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..system.terminal import printable
from .options import Keys, OptionFile, find

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Every = Annotated[float, Field(ge=1, multiple_of=1)]  # iterations; a float, as the toolbox's files write !!float 5e3
Quality = Annotated[int, Field(ge=1, le=100)]
Probability = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]

OPTIONAL: Any = None  # marks a key that may be left out, but not be ~; the code that reads it has the default


def _is_name(text: str) -> str:
    if set(text) & set('/\\') or printable(text) != text or not text.strip('.'):  # the toolbox prints it as it is
        raise PydanticCustomError('name', 'input should be a name, without / and unprintable characters, not only dots')
    return text


Name = Annotated[str, AfterValidator(_is_name)]  # of a folder or file, without a path


class Section(BaseModel):
    """A mapping whose keys are all known. Types are strict: a string is not taken for a number."""

    # No namespaces: pydantic before 2.10 would warn of the key model_type.
    model_config = ConfigDict(extra='forbid', strict=True, protected_namespaces=())

    @model_validator(mode='before')
    @classmethod
    def _tell_keys(cls, section: Any, info: ValidationInfo) -> Any:
        """Note this section's keys, to suggest one for a misspelt key."""
        assert info.context is not None
        info.context[id(section)] = cls.model_fields.keys()
        return section


class OpenSection(BaseModel):
    """A mapping that allows other keys too."""

    model_config = ConfigDict(extra='allow', strict=True, protected_namespaces=())


class Built(OpenSection):
    """An object that a registry builds: `type`, and the arguments of that class."""

    type: Text


class Backend(Section):
    type: Literal['lmdb', 'disk']


class PairData(Section):
    """The keys that JPEGDeblurDataset shares with the toolbox's PairedImageDataset."""

    name: Name
    type: Text
    dataroot_lq: Text
    dataroot_gt: Text | None = None
    io_backend: Backend
    gt_size: Positive | None = None
    num_worker_per_gpu: Count | None = None
    batch_size_per_gpu: Positive | None = None
    batch_size_total: Positive | None = None
    dataset_enlarge_ratio: AboveZero = OPTIONAL
    prefetch_mode: Literal['cpu', 'cuda'] | None = None
    num_prefetch_queue: Positive = OPTIONAL  # of prefetch_mode: cpu, which replacements.py turns off
    pin_memory: bool = OPTIONAL
    persistent_workers: bool = OPTIONAL
    use_shuffle: bool = OPTIONAL  # the toolbox's files have it; nothing reads it


class JPEGDeblurData(PairData):
    dataroot_gt_jpeg: Text | None = None
    names: Text | None = None
    jpeg_quality: Quality | None = None
    blurred_quality: Quality | Annotated[list[Quality], Field(min_length=2, max_length=2)] | None = None  # or a range
    hflip_prob: Probability = OPTIONAL
    vflip_prob: Probability = OPTIONAL
    transpose_prob: Probability = OPTIONAL
    rgb_permute_prob: Probability = OPTIONAL
    noise_prob: Probability = OPTIONAL
    noise_sigma: NotNegative = OPTIONAL


class PairedImageData(PairData):
    meta_info_file: Text | None = None
    filename_tmpl: Text = OPTIONAL
    mean: list[float] | None = None
    std: list[float] | None = None
    color: Literal['y'] | None = None
    use_hflip: bool = OPTIONAL
    use_rot: bool = OPTIONAL


class OtherData(Built):
    """Another data set of the toolbox or of a plugin, whose further keys are not known here."""

    name: Name


def _data_kind(data: Any) -> str:
    kind = data.get('type') if isinstance(data, dict) else None
    return kind if kind in ('JPEGDeblurDataset', 'PairedImageDataset') else 'other'


DataSet = Annotated[
    Annotated[JPEGDeblurData, Tag('JPEGDeblurDataset')]
    | Annotated[PairedImageData, Tag('PairedImageDataset')]
    | Annotated[OtherData, Tag('other')],
    Discriminator(_data_kind),
]


class Optimizer(OpenSection):
    """Further keys are arguments of torch.optim.Adam or of our Muon."""

    type: Literal['Adam', 'Muon']
    lr: AboveZero
    weight_decay: NotNegative = OPTIONAL
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = OPTIONAL


class MultiStepScheduler(Section):
    type: Literal['MultiStepLR', 'MultiStepRestartLR']
    milestones: list[Positive]
    gamma: AboveZero = OPTIONAL
    restarts: list[Count] = OPTIONAL
    restart_weights: list[float] = OPTIONAL


class CosineScheduler(Section):
    type: Literal['CosineAnnealingRestartLR']
    periods: list[Positive]
    restart_weights: list[float] = OPTIONAL
    eta_min: NotNegative = OPTIONAL


class Training(Section):
    total_iter: Positive
    warmup_iter: int = OPTIONAL
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = OPTIONAL
    optim_g: Optimizer
    scheduler: Annotated[MultiStepScheduler | CosineScheduler, Field(discriminator='type')]
    pixel_opt: Built | None = None
    perceptual_opt: Built | None = None
    autoencoder_opt: Built | None = None
    amp: Literal['off', 'bf16', 'fp16', 'auto'] = OPTIONAL
    channels_last: bool | Literal['auto'] = OPTIONAL
    checkpointing: bool = OPTIONAL
    start_from_image: bool = OPTIONAL
    accumulate: Positive | Literal['auto'] = OPTIONAL
    max_skipped_steps: Count = OPTIONAL
    gradient_compression: Literal['none', 'bf16'] = OPTIONAL


class Metric(Built):
    crop_border: Count = OPTIONAL
    better: Literal['higher', 'lower'] = OPTIONAL


class Inference(Section):
    mode: Literal['exact', 'local', 'chop', 'input'] = OPTIONAL
    ensemble: bool = OPTIONAL
    precision: Literal['auto', 'fp32', 'bf16', 'fp16'] = OPTIONAL
    patch_size: Positive | None = None
    max_memory: Positive | None = None


class Submission(Section):
    every: Positive
    extra_data: bool
    description: Text


class Validation(Section):
    val_freq: Every | None = None
    save_img: bool
    suffix: Name | None = None
    pbar: bool = OPTIONAL
    metrics: dict[str, Metric] | None = None
    best_metric: Text | None = None
    inference: Inference | None = None
    submission: Submission | None = None


class Wandb(Section):
    project: Text | None = None
    resume_id: Text | None = None


class Logger(Section):
    print_freq: Positive
    save_checkpoint_freq: Every
    keep_last: Positive | None = None
    use_tb_logger: bool
    wandb: Wandb | None = None


class Paths(Section):
    pretrain_network_g: Text | None = None
    param_key_g: Text | None = None
    strict_load_g: bool = OPTIONAL
    resume_state: Text | None = None
    ignore_resume_networks: list[Text] | Text | None = None


class DistParams(Section):
    backend: Text | None = None
    port: Positive | None = None  # of the first process, if srun starts them
    timeout: Positive = OPTIONAL  # seconds that a process waits for the others before it gives up


class Options(Section):
    """A resolved option file of SRModel or WRCANModel."""

    name: Name
    model_type: Text
    scale: Positive
    num_gpu: Count | Literal['auto']
    manual_seed: Count
    datasets: Annotated[dict[Text, DataSet], Field(min_length=1)]
    network_g: Built
    path: Paths
    train: Training | None = None
    val: Validation | None = None
    logger: Logger | None = None
    dist_params: DistParams | None = None
    find_unused_parameters: bool = OPTIONAL
    deterministic: bool = OPTIONAL
    options_sha256: Text | None = None  # only in the copy that is kept with a run


class OtherOptions(OpenSection):
    """A resolved option file of another model; only that model knows its further keys."""

    name: Name
    model_type: Text
    num_gpu: Count | Literal['auto']
    manual_seed: Count
    datasets: Annotated[dict[Text, DataSet], Field(min_length=1)]


def wrong_keys(file: OptionFile) -> Iterator[str]:
    """Yield what the schema refuses: unknown or missing keys, wrong types, values out of range."""
    keys_of: dict[int, Iterable[str]] = {}  # by the section's id
    try:
        _schema_of(file.values.get('model_type')).model_validate(file.values, context=keys_of)
    except ValidationError as error:
        messages: dict[Keys, list[str]] = {}
        for each in error.errors():
            keys = _present_keys(each['loc'], file.values)
            if each['type'] == 'missing':
                keys = (*keys, str(each['loc'][-1]))
                message = 'is missing'
            elif each['type'] == 'extra_forbidden':
                known = keys_of.get(id(find(file.values, *keys[:-1])), ())
                near = difflib.get_close_matches(keys[-1], known, n=1)
                message = 'there is no such option here' + (f'; did you mean {near[0]}?' if near else '')
            else:
                message = f'{each["msg"][0].lower()}{each["msg"][1:]}, not {each["input"]!r}'
            messages.setdefault(keys, []).append(message)
        for keys, texts in messages.items():
            yield f'{file.at(*keys)}: {", or ".join(texts)}'


def _schema_of(model: Any) -> type[BaseModel]:
    """Return the schema for `model`. The toolbox, which takes seconds to load, is imported only for other models."""
    if not isinstance(model, str) or model in ('SRModel', 'WRCANModel'):
        return Options
    from basicsr.utils.registry import MODEL_REGISTRY

    return OtherOptions if model in MODEL_REGISTRY else Options


def _present_keys(location: tuple[int | str, ...], values: Any) -> Keys:
    """Return the keys of an error's location that are in `values`; pydantic adds the names of union members."""
    keys: list[str] = []
    for part in location:
        if isinstance(values, dict) and part in values:
            keys.append(str(part))
            values = values[part]
    return tuple(keys)
