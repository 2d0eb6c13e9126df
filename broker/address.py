"""Where the broker is and who we are to it, read from the settings; imports no client library."""

from urllib.parse import quote, unquote, urlsplit, urlunsplit

from facade.contract.settings import Settings


def broker_urls(settings: Settings) -> tuple[str, ...]:
    """Give the broker's URLs with the virtual host filled in: the domain, unless a URL has one.

    Raises:
        SettingsMissing: when the settings name no broker.
    """
    settings.need("broker")
    return tuple(_with_vhost(url, settings.host.domain) for url in settings.broker.urls)


def broker_user(settings: Settings) -> str:
    """Give the user that the first URL logs in with; RabbitMQ checks it in every message.

    Raises:
        SettingsMissing: when the settings name no broker.
    """
    settings.need("broker")
    return unquote(urlsplit(settings.broker.urls[0]).username or "guest")


def broker_address(settings: Settings) -> str:
    """Give host and port of every URL, without passwords, for messages to people."""
    parts = [urlsplit(url) for url in settings.broker.urls]
    return ", ".join(f"{p.hostname}:{p.port or _default_port(p.scheme)}" for p in parts)


def describe(error: BaseException) -> str:
    """One line of what a client library says, its class where it says nothing."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _with_vhost(url: str, domain: str) -> str:
    parts = urlsplit(url)
    if parts.path in ("", "/"):
        parts = parts._replace(path="/" + quote(domain, safe=""))
    return urlunsplit(parts)


def _default_port(scheme: str) -> int:
    return 5671 if scheme == "amqps" else 5672
