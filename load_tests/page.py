"""Locust's page takes any text for any argument, and starts: what cannot run is refused here, in its own form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import jsonify, request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Response
    from locust.env import Environment


def guard(environment: Environment, take: Callable[[Mapping[str, str]], None]) -> None:
    """Have each start from the page checked.

    Args:
        environment: Locust's; nothing happens where it has no page.
        take: Prepares a run with the fields of the form, or raises a ValueError that says what is wrong.
    """
    web_ui = environment.web_ui
    if web_ui is None or web_ui.app is None:
        return

    def refuse() -> Response | None:
        if request.method != "POST" or not request.path.endswith("/swarm"):
            return None
        try:
            take(request.form)
        except ValueError as error:
            return jsonify({"success": False, "message": str(error), "host": environment.host})
        return None

    web_ui.app.before_request(refuse)
