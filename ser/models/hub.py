"""Backbones of the transformers library: pretrained from a hub name or folder, or random from a configuration.

Guarantees: float32 weights whatever the checkpoint's own type; a checkpoint that lacks a weight of the model is
refused (transformers would only warn and leave it random); no code of a repository is ever run, nor is the user asked
whether it may (transformers' default); transformers is imported here, on use. Weights are loaded whole, before any sharding: weight-normed convolutions do not survive
being built inside a partitioned context.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ser.models.config import PretrainedConfig
from shards.errors import UserError

# Made anew where absent, without loss: poolers are dropped, the mask embedding only serves SpecAugment.
_OPTIONAL = ("pooler.", "masked_spec_embed")


def load_backbone(config: PretrainedConfig, overrides: Mapping[str, Any], stored: dict | None) -> Any:
    """A transformers model without head.

    Args:
        config: Where it comes from.
        overrides: Settings of the transformers configuration that the caller insists on; unknown ones are dropped.
        stored: The transformers configuration of a saved model (`stored_config`): builds the empty shape, no hub.

    Raises:
        UserError: Not found, not loadable, or weights missing.
    """
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    if stored is not None:
        return _drop_pooler(transformers.AutoModel.from_config(_from_dict(stored), **options))
    if config.config is not None:
        shape = _from_dict(config.config)
        _override(shape, config, overrides)
        try:
            return _drop_pooler(transformers.AutoModel.from_config(shape, **options))
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"the backbone cannot be built: {first}", where=f"config of {shape.model_type}"
            ) from error
    assert config.name is not None
    source = {"revision": config.revision, "local_files_only": config.local_files_only}
    with hub_errors(config), _quiet():
        shape = transformers.AutoConfig.from_pretrained(config.name, trust_remote_code=False, **source)
        _override(shape, config, overrides)
        model, report = transformers.AutoModel.from_pretrained(
            config.name, config=shape, output_loading_info=True, trust_remote_code=False, **source, **options
        )
    missing = [key for key in report["missing_keys"] if not any(part in key for part in _OPTIONAL)]
    faults = sorted(missing) + sorted(map(str, report["mismatched_keys"]))
    if faults:
        raise UserError(
            f"the checkpoint lacks {len(faults)} of the model's weights, first {faults[0]}",
            where=str(config.name),
            hint="name a checkpoint of the same architecture, or lower num_layers to what it has",
        )
    return _drop_pooler(model)


def stored_config(model: Any) -> dict[str, Any]:
    """The model's transformers configuration as JSON that `load_backbone(stored=...)` takes."""
    facts = json.loads(model.config.to_json_string(use_diff=False))
    return {
        key: value for key, value in facts.items() if key not in ("_name_or_path", "transformers_version")
    }


def checkpoint_normalises(config: PretrainedConfig) -> bool:
    """Whether a checkpoint's preprocessor wants zero-mean unit-variance waveforms; True where it does not say.

    Raises:
        UserError: Where the hub cannot be asked and the file is not in the cache, since a guess would be silent.
    """
    name = "preprocessor_config.json"
    if config.name is None:
        return True
    if Path(config.name).is_dir():
        path = Path(config.name) / name
        if not path.exists():
            return True
    else:
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(
                hf_hub_download(
                    config.name, name, revision=config.revision, local_files_only=config.local_files_only
                )
            )
        except LocalEntryNotFoundError:
            if try_to_load_from_cache(config.name, name, revision=config.revision) is _CACHED_NO_EXIST:
                return True  # it was asked for once, and there is none
            raise UserError(
                f"{name} is not in the cache and the hub was not reached",
                where=config.name,
                hint="say normalise: true or normalise: false in the model's configuration",
            ) from None
        except EntryNotFoundError:
            return True
    return bool(json.loads(path.read_text()).get("do_normalize", True))


def freeze(module: nn.Module) -> None:
    """Take a module's parameters out of training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _from_dict(facts: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    facts = dict(facts)
    kind = facts.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"transformers knows no model_type {kind!r}", where="config", hint="hubert, wavlm, bert, ..."
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(facts)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"transformers refuses the configuration: {error}", where=f"config of {kind}"
        ) from error


def _override(shape: Any, config: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    if config.num_layers is not None:
        if config.num_layers > shape.num_hidden_layers:
            raise UserError(
                f"num_layers {config.num_layers} is more than the {shape.num_hidden_layers} of the backbone",
                where=str(config.name or "config"),
            )
        shape.num_hidden_layers = config.num_layers
    for key, value in overrides.items():
        if hasattr(shape, key):
            setattr(shape, key, value)


def _drop_pooler(model: Any) -> Any:
    # BERT's pooler is not used here, and a parameter without gradient stops collective training.
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


@contextmanager
def hub_errors(config: PretrainedConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        folder = Path(str(config.name)).expanduser()
        if "trust_remote_code" in str(error):
            raise UserError(
                "the pretrained model brings its own code, which is never run here",
                where=str(config.name),
                hint="name a checkpoint of an architecture that transformers itself knows",
            ) from error
        hint = (
            "check the folder: config.json and model.safetensors must lie in it"
            if folder.exists()
            else "check the name and revision; without network, fill the cache first or give a folder"
        )
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the pretrained model cannot be loaded: {first}", where=str(config.name), hint=hint
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of unexpected keys: dropped heads and layers are meant, missing ones raise here."""
    from transformers.utils import logging as log

    before = log.get_verbosity()
    log.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        log.set_verbosity(before)
