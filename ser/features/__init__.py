"""Features from waveforms: log-mel, the 25 prosodic descriptors, and their normalisation."""
