"""What keeps a mail from being sent.

TrellisError
  MailServerAway       nobody took it; the same mail is tried again
"""

from __future__ import annotations

from facade.contract.errors import TrellisError


class MailServerAway(TrellisError):
    """The mail server cannot be reached, or takes no mail at the moment."""

    code = "mail_server_away"
    message = "The mail server {server} takes no mail now: {reason}."
    hint = "Nothing is lost: the mail is tried again until it is taken. Check the [mail] settings."
