"""MONAI Label's login, mended: without this, every token is refused."""

from jwt import PyJWK
from jwt.algorithms import RSAAlgorithm
from monailabel.endpoints.user import auth


def accept_tokens() -> None:
    """Has tokens checked as RS256, which is what a realm signs with unless told otherwise.

    MONAI Label 0.8.5 names no algorithm when it reads a token; PyJWT 2 answers that with an error, which becomes 401. A
    key that carries its algorithm needs none to be named.
    """
    fetch = auth.get_public_key

    def public_key(realm_uri: str) -> PyJWK:
        key = RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(fetch(realm_uri))
        return PyJWK({**RSAAlgorithm.to_jwk(key, as_dict=True), "alg": "RS256"})

    auth.get_public_key = public_key
