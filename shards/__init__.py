"""Data: utterances, corpus readers, packed shards, the plan of an epoch, views, stored targets, loading."""
