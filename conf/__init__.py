"""Hydra's configuration: one folder a group, one file a choice. `config.yaml` is the top."""
