"""Settings out of a file, out of variables, and everything that is refused."""

from pathlib import Path

import pytest

from facade.contract.errors import SettingsInvalid, SettingsMissing
from facade.contract.settings import dump, load, split_address
from facade.contract.settings_table import table

SECRET = "sixteen or more letters"
WHOLE = {
    "TRELLIS_HOST": "Host_a",
    "TRELLIS_DOMAIN": "site",
    "TRELLIS_DATA_DIR": "/d",
    "TRELLIS_VOLUME_DIRS": "/v:/w",
    "TRELLIS_RUN_DIR": "/r",
    "TRELLIS_LINK_LISTEN": "[::1]:7000",
    "TRELLIS_LINK_ADVERTISE": "proxy:7001",
    "TRELLIS_LINK_SECRET": SECRET,
    "TRELLIS_LINK_PLAIN": "yes",
    "TRELLIS_EXPORT_LISTEN": "0.0.0.0:10809",
    "TRELLIS_EXPORT_ADVERTISE": "store.example:10809",
    "TRELLIS_EXPORT_CERTIFICATE": "/tls/cert.pem",
    "TRELLIS_EXPORT_KEY": "/tls/key.pem",
    "TRELLIS_EXPORT_CA": "/tls/ca.pem",
    "TRELLIS_EXPORT_CLIENTS": "backup.example, reader",
    "TRELLIS_EXPORT_CLIENT_CERTIFICATES": "/tls/client",
    "TRELLIS_EXPORT_PLAIN_LISTEN": "127.0.0.1:10810",
    "TRELLIS_BROKER_URLS": "amqp://u:p@a:1, amqps://u:p@b",
    "TRELLIS_REDIS_URL": 'redis+socket:///r"\\/s?password=p',
    "TRELLIS_MAIL_SMTP": "mail:25",
    "TRELLIS_MAIL_SENDER": "t@x",
    "TRELLIS_MAIL_RECIPIENTS": "a@x,b@x",
    "TRELLIS_FAULTS_VOLUMES": "v: write 1 EIO; flush 2 ENOSPC, w: read delay 5ms",
    "TRELLIS_FAULTS_BITMAPS": "pair: write torn",
    "TRELLIS_FAULTS_POWER_CUT": "40 seed 7",
}


def test_variables_file_and_dump_agree(tmp_path):
    settings = load(None, WHOLE)
    path = tmp_path / "t.toml"
    path.write_text(dump(settings))
    assert load(path, {}) == settings
    assert load(None, {"TRELLIS_CONFIG": str(path)}) == settings
    assert settings.host.name == "host_a"
    assert settings.host.volume_dirs == (Path("/v"), Path("/w"))
    assert settings.broker.urls == ("amqp://u:p@a:1", "amqps://u:p@b")
    assert settings.link.plain is True
    assert settings.export.clients == ("backup.example", "reader")
    assert settings.mail.smtp == "smtp://mail:25"
    assert settings.faults.volumes == ("v: write 1 EIO; flush 2 ENOSPC", "w: read delay 5ms")
    assert split_address(settings.link.listen) == ("::1", 7000)


def test_every_setting_is_in_this_test():
    assert {row.variable for row in table()} == set(WHOLE)


def test_defaults_follow_what_is_given():
    settings = load(None, {"TRELLIS_DATA_DIR": "/d", "TRELLIS_LINK_LISTEN": "h:1"})
    assert settings.host.volume_dirs == (Path("/d/volumes"),)
    assert settings.link.advertise == "h:1"
    assert settings.host.domain == "trellis"


def test_variables_win_over_the_file(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('[host]\nname = "a"\ndomain = "d"\n')
    host = load(path, {"TRELLIS_HOST": "b", "TRELLIS_DIR": "/x"}).host
    assert (host.name, host.domain) == ("b", "d")


def test_secrets_come_out_of_files(tmp_path):
    secret, urls = tmp_path / "secret", tmp_path / "urls"
    secret.write_text(SECRET + "\n")
    urls.write_text("amqp://a\namqp://b\n")
    path = tmp_path / "t.toml"
    path.write_text(f'[link]\nsecret_file = "{secret}"\n')
    settings = load(path, {"TRELLIS_BROKER_URLS_FILE": str(urls)})
    assert settings.link.secret == SECRET
    assert settings.broker.urls == ("amqp://a", "amqp://b")
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRELLIS_HOST", "a.b"),
        ("TRELLIS_DATA_DIR", "relative"),
        ("TRELLIS_DATA_DIR", "/a/../b"),
        ("TRELLIS_VOLUME_DIRS", "/a:/a"),
        ("TRELLIS_VOLUME_DIRS", ":"),
        ("TRELLIS_RUN_DIR", "/" + "r" * 60),
        ("TRELLIS_LINK_LISTEN", "host"),
        ("TRELLIS_LINK_LISTEN", "host:0"),
        ("TRELLIS_LINK_LISTEN", "host:65536"),
        ("TRELLIS_LINK_LISTEN", "::1:7000"),
        ("TRELLIS_LINK_SECRET", "short"),
        ("TRELLIS_EXPORT_PLAIN_LISTEN", "192.0.2.1:10809"),
        ("TRELLIS_EXPORT_PLAIN_LISTEN", "0.0.0.0:10809"),
        ("TRELLIS_EXPORT_CLIENTS", "a\x07b"),
        ("TRELLIS_LINK_SECRET_FILE", "/nowhere/at/all"),
        ("TRELLIS_BROKER_URLS", "http://a"),
        ("TRELLIS_BROKER_URLS", "amqp://a:x"),
        ("TRELLIS_REDIS_URL", "memory://"),
        ("TRELLIS_MAIL_SENDER", "nobody"),
        ("TRELLIS_MAIL_SENDER_FILE", "/etc/hostname"),
        ("TRELLIS_TYPO", "x"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(variable, value):
    with pytest.raises(SettingsInvalid, match=variable):
        load(None, {variable: value})


def test_an_export_at_every_address_says_which_one_clients_dial():
    with pytest.raises(SettingsInvalid, match="advertise"):
        load(None, {"TRELLIS_EXPORT_LISTEN": "0.0.0.0:10809"})


@pytest.mark.parametrize(
    "text",
    [
        "[hosts]\n",
        "name = 1\n",
        "[host]\nnam = 'a'\n",
        "[host]\nname = 1\n",
        "[host]\nname_file = '/x'\n",
        "[host]\nvolume_dirs = '/a'\n",
        "[host]\nvolume_dirs = [1]\n",
        "[link]\nsecret = 'sixteen or more letters'\nsecret_file = '/x'\n",
        "[host\n",
    ],
)
def test_files_that_are_not_understood_are_refused(tmp_path, text):
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=r"t\.toml"):
        load(path, {})


def test_a_refusal_prints_no_password():
    with pytest.raises(SettingsInvalid) as caught:
        load(None, {"TRELLIS_BROKER_URLS": "ampq://user:hunter2hunter2@h"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "variable"),
    [
        (("host", "link"), "TRELLIS_HOST"),
        (("link",), "TRELLIS_LINK_LISTEN"),
        (("broker",), "TRELLIS_BROKER_URLS"),
        (("redis",), "TRELLIS_REDIS_URL"),
        (("mail",), "TRELLIS_MAIL_SMTP"),
    ],
)
def test_what_is_missing_is_said_with_the_way_to_set_it(sections, variable):
    with pytest.raises(SettingsMissing) as caught:
        load(None, {}).need(*sections)
    assert variable in caught.value.hint
    whole = load(None, WHOLE)
    assert whole.need(*sections) is whole


def test_the_page_lists_every_setting():
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text()
    for row in table():
        assert f"| `{row.key}` | `{row.variable}` |" in page
