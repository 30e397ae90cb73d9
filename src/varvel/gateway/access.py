"""Who may call an app, and who may ask about a queued request.

Nobody learns of an app that is not theirs: without a key, a private app and one that does not exist both answer
401; with a key, another owner's private app and one that does not exist both answer 404.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from varvel.apps.model import App, AppId, Catalog
from varvel.auth.model import Authenticator, Caller
from varvel.errors import AuthenticationRequired, NotFound
from varvel.gateway.tokens import Tokens
from varvel.queue.model import Job


class Access:
    """Decides by keys and auth modes. Everything is answered from memory."""

    def __init__(self, authenticator: Authenticator, catalog: Catalog, tokens: Tokens) -> None:
        self._authenticator = authenticator
        self._catalog = catalog
        self._tokens = tokens

    def caller(self, authorization: str | None) -> Caller:
        """Whoever has a valid key. Raises `AuthenticationRequired`."""
        caller = self._authenticator.authenticate(authorization)
        if caller is None:
            raise AuthenticationRequired
        return caller

    def app(self, app_id: AppId, authorization: str | None, token: str | None) -> tuple[App, str | None]:
        """The app and the nickname of its caller, None for a call without a key to a public app.

        `token` (of `/tokens`) stands in where there is no key. Raises `AuthenticationRequired` and `NotFound`.
        """
        app = self._catalog.get(app_id)
        if token is not None and authorization is None:
            grant = self._tokens.check(token, "apps")
            if grant is None or not grant.allows(app_id):
                raise AuthenticationRequired("The token is too old, or not for this application")
            owner = grant.owner
        elif app is not None and app.auth_mode == "public" and not is_key(authorization):
            return app, None
        else:
            owner = self.caller(authorization).owner
        if app is None or (app.auth_mode == "private" and owner != app_id.owner):
            raise NotFound(f"Application {str(app_id)!r} not found")
        return app, owner

    def may_see(self, job: Job, app_id: AppId, authorization: str | None) -> bool:
        """Whether the bearer of the key may ask about a job of that app: its submitter, or the app's owner.

        A job that was submitted without a key is seen by whoever knows its id. Raises `AuthenticationRequired`.
        """
        if job.app != app_id:
            return False
        if job.caller is None and not is_key(authorization):
            return True
        return self.caller(authorization).owner in (job.caller, app_id.owner)

    def may_ask(self, app_id: AppId, authorization: str | None) -> None:
        """Whether it may be said that a request is not there: to anybody of public apps, else to bearers of a key.

        Raises `AuthenticationRequired`.
        """
        app = self._catalog.get(app_id)
        if app is None or app.auth_mode != "public" or is_key(authorization):
            self.caller(authorization)


def is_key(authorization: str | None) -> bool:
    """Whether the header names a key of ours; public apps may use other schemes for themselves."""
    return authorization is not None and authorization[:4].lower() == "key "


@lru_cache(maxsize=4096)
def caller_id(caller: str | None, owner: str) -> bytes:
    """How the app is told its caller: the nickname for its owner, a hash of it for others, empty for nobody."""
    if caller is None or caller == owner:
        return (caller or "").encode()
    return hashlib.sha256(f"varvel caller {caller}".encode()).hexdigest()[:32].encode()
