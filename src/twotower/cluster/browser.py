"""The page in the user's browser, where there is one to be seen."""

import os
import webbrowser

from twotower.cluster.tools import this_system

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def open_in_browser(url: str) -> bool:
    """Open the page; whether that was possible.

    On Linux without a screen nothing is opened: a browser in text mode would take the terminal.
    """
    if this_system() == "linux" and not any(os.environ.get(name) for name in SCREENS):
        return False
    return webbrowser.open(url)
