"""Dashboards for W&B as code: a workspace and a report, made with wandb-workspaces."""
