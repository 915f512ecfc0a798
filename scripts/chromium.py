"""The page in Chromium, for the scripts: the browser of this machine, without a window, led by Playwright."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: The page has drawn its state, and computes nothing.
DRAWN = 'html[data-drawn]:not(:has([aria-busy="true"]))'


class Missing(Exception):
    """There is no Chromium here, or no Playwright. The message says what to install."""


@contextlib.contextmanager
def chromium():
    """A browser of Playwright's. Raises Missing if there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise Missing(
            "it needs Playwright and Chromium: pip install playwright && playwright install chromium"
        ) from None
    path = next(filter(None, map(shutil.which, NAMES)), None)  # else the one that `playwright install` fetched
    sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]  # the user root has none
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        except Error as error:
            said = str(error).strip().splitlines()[0]
            raise Missing(f"Chromium did not start ({said}): apt-get install chromium") from None
        yield browser
        browser.close()


@contextlib.contextmanager
def explored():
    """The address of `nanopatch explore`, while it runs."""
    command = [sys.executable, "-m", "nanopatch", "explore", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield next(re.search(r"http://\S+", line)[0] for line in server.stdout if "http://" in line)
        finally:
            server.terminate()
