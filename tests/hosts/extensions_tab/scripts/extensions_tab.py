"""A WebUI extension for tests: routes that do what buttons of the host's Extensions tab do."""

from modules import extensions, script_callbacks, ui_extensions


def install(url: str):
    """The button *Install* of the part "Install from URL"."""
    return ui_extensions.install_extension_from_url(None, url)[-1]


def update(name: str):
    """*Check for updates*, then *Apply*, which ends the WebUI afterwards; what the table says of the extension."""
    extension = next(each for each in extensions.extensions if each.name == name)
    ui_extensions.check_updates(None, "[]")
    found = extension.status
    extension.fetch_and_reset_hard()
    ui_extensions.check_updates(None, "[]")
    return [found, extension.status]


def add_routes(_, app):
    for function in (install, update):
        app.add_api_route(f"/resdit_test/{function.__name__}", function, methods=["GET"])


script_callbacks.on_app_started(add_routes)
