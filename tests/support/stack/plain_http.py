"""What a client over plain HTTP gets as `verify`.

httpx reads every authority that the machine trusts, anew for each client that is told nothing else, and that takes
longer than most requests of a test.
"""

import ssl
from typing import Final

PLAIN_HTTP: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody
