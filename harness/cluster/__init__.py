"""A fleet of replicas behind a router, on one virtual clock (docs/fleet.md)."""
