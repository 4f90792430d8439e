"""Settings of a network that follow from the data: number of classes, channels, image size."""

import inspect
from copy import deepcopy
from typing import Any

import hydra
from omegaconf import DictConfig

from lightconv.data import ImageData
from lightconv.runs.build import instantiate_data

_FROM_DATA = ("classes", "channels", "image_size")


def complete_model(config: DictConfig) -> DictConfig:
    """Copy a configuration with the network's settings left at null taken from the data.

    Without data in the configuration they are the network's own defaults. A setting stays null if that is the network's
    own default: pretrained weights have a size of their own.

    Raises:
        InputError: If the data refuse their settings, or have no classes.
    """
    missing = [name for name in _FROM_DATA if config.model.get(name, "") is None]
    defaults = default_arguments(config) if missing else {}
    missing = [name for name in missing if defaults.get(name, "") is not None]
    if not missing:
        return config
    config = deepcopy(config)
    values = settings_of(instantiate_data(config)) if config.get("data") else defaults
    for name in missing:
        config.model[name] = values.get(name)
    return config


def default_arguments(config: DictConfig) -> dict[str, Any]:
    """Return the default values of the network's arguments."""
    try:
        network = hydra.utils.get_object(config.model["_target_"])
        parameters = inspect.signature(network).parameters
    except (KeyError, ImportError, ValueError, TypeError):
        return {}  # reported when the network is built
    return {
        name: parameter.default for name, parameter in parameters.items() if parameter.default is not parameter.empty
    }


def settings_of(data: ImageData) -> dict[str, int]:
    """Return the settings that fit a network to the data."""
    channels, height, _ = data.image_shape
    return {"classes": len(data.classes), "channels": channels, "image_size": height}
