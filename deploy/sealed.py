"""JSON that ends in the digest of itself, so that a single flipped bit is noticed before parsing.

Standard library only: a CI job reads such files and installs nothing. `export.build_engine` and
`deploy.edge_verify` travel to devices by themselves and seal in their own words.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deploy import strict_json

_END = b"\n}\n"
_KEY = b'"sha256_of_the_above"'
_LAST = b",\n " + _KEY + b': "'


def seal(content: Mapping[str, Any]) -> bytes:
    """A table as JSON, of which the last line but one is the SHA-256 of all lines before it.

    Raises:
        ValueError: the table is empty, or a number in it is not finite.
    """
    if not content:
        raise ValueError("nothing to seal")
    above = json.dumps(content, indent=1, allow_nan=False).encode().removesuffix(b"\n}")
    return above + _LAST + hashlib.sha256(above).hexdigest().encode() + b'"' + _END


def is_sealed(data: bytes) -> bool:
    """Whether something claims to be a sealed file, true or not."""
    return _KEY in data


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: it was changed since, was never sealed, or is no strict JSON.
    """
    above, _, rest = data.rpartition(_LAST)
    if rest != hashlib.sha256(above).hexdigest().encode() + b'"' + _END:
        raise ValueError("it does not end in its own digest: cut short or changed since")
    return strict_json.loads(above + _END)
