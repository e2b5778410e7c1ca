"""The science: features, models, objectives, protocols, the training loop, evaluation and reports. Never imports Ray."""

__version__ = "0.1.0"
