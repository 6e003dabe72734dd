"""A headless Chromium with what the tests ask of it."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--no-first-run",
    "--hide-scrollbars",
)  # fmt: skip


def installed() -> tuple[str, str] | None:
    """Paths of a Chromium and of the driver that came with it; None where either is missing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window. Pages are opened from disk."""

    def __init__(self, browser: str, driver: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in ARGUMENTS:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # with the driver's path given, nothing is looked for or downloaded
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def open(self, path: Path, width: int = 1280, *, dark: bool = False, media: str = "") -> None:
        """Load a page anew in a window of `width` by 900 pixels."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.emulate(dark=dark, media=media)
        self.driver.get(path.resolve().as_uri())

    def emulate(self, *, dark: bool = False, media: str = "") -> None:
        """What the system prefers, and the medium: "print" or the screen."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        given = {"media": media, "features": [scheme]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", given)

    def js(self, expression: str, *arguments: Any) -> Any:
        """The value of an expression; elements given are `arguments[0]` and so on."""
        return self.driver.execute_script(f"return {expression}", *arguments)

    def find(self, css: str) -> WebElement:
        """The first element."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def says(self, css: str) -> str:
        """The first element's text, once it is shown."""
        return str(WebDriverWait(self.driver, 10).until(lambda _: self.find(css).text))

    def find_all(self, css: str) -> list[WebElement]:
        """All elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def press(self, *keys: str) -> None:
        """Keys one after the other, to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, element: WebElement, x_share: float = 0.5, *, click: bool = False) -> None:
        """Move the pointer onto an element, a share of its width from the left."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        self.driver.execute_async_script(  # what scrolling brings about comes before the pointer
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )
        offset = round((x_share - 0.5) * element.size["width"])
        chain = ActionChains(self.driver).move_to_element_with_offset(element, offset, 0)
        (chain.click() if click else chain).perform()

    def pixels(self, element: WebElement) -> str:
        """A digest of what an element looks like."""
        return hashlib.sha256(base64.b64decode(element.screenshot_as_base64)).hexdigest()

    def logged_errors(self) -> list[str]:
        """The console's warnings and errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses asked for since the last call."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


__all__ = ["Browser", "Keys", "installed"]
