"""Commands, tables and figures about runs."""

import harness  # noqa: F401  before torch, which reads what it sets
