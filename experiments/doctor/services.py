"""Programs and accounts beside the project: Chromium, Weights & Biases."""

from __future__ import annotations

import configparser
import netrc
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from experiments.doctor.checks import Check

_GROUP = "beside"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_DEFAULT_URL = "https://api.wandb.ai"
_KEY = "WANDB_API_KEY"


def service_checks(environment: Mapping[str, str], home: Path) -> Iterator[Check]:
    """Without any network: a key that is there may still be refused."""
    yield _browser()
    yield login_check(environment, home)


def _browser() -> Check:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    name = "Chromium"
    if found and driver:
        return Check(_GROUP, name, "ok", f"{found}, {driver}")
    lacking = "absent" if not found else f"{found}, but no chromedriver"
    way_out = "the report's browser tests are skipped: apt install chromium chromium-driver"
    return Check(_GROUP, name, "note", lacking, way_out)


def login_check(environment: Mapping[str, str], home: Path) -> Check:
    """Where W&B would find its key. The key itself is neither kept nor shown."""
    name = "W&B login"
    mode = environment.get("WANDB_MODE", "")
    source = key_source(environment, home)
    if mode in ("offline", "disabled", "dryrun"):
        way_out = "tracking=wandb sends nothing: unset WANDB_MODE"
        return Check(_GROUP, name, "note", f"WANDB_MODE={mode}", way_out)
    if source is None:
        way_out = "tracking=wandb writes offline runs: wandb login, or set WANDB_API_KEY"
        return Check(_GROUP, name, "note", "no key", way_out)
    return Check(_GROUP, name, "ok", f"key from {source}, not tried")


def key_source(environment: Mapping[str, str], home: Path) -> str | None:
    """What holds the key: a variable, a netrc file, or W&B's settings."""
    if environment.get(_KEY):
        return _KEY
    host = urlsplit(environment.get("WANDB_BASE_URL", _DEFAULT_URL)).hostname or ""
    path = Path(environment.get("NETRC", home / ".netrc"))
    try:
        if netrc.netrc(path).authenticators(host):
            return f"{path} ({host})"
    except (OSError, netrc.NetrcParseError):
        pass
    folder = Path(environment.get("WANDB_CONFIG_DIR", home / ".config" / "wandb"))
    settings = configparser.ConfigParser()
    try:
        settings.read(folder / "settings")
    except configparser.Error:
        return None
    return str(folder / "settings") if settings.has_option("default", "api_key") else None
