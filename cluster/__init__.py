"""Ray: sessions, parallel packing, targets and trainings. Imports `shards` and `ser`."""
