"""Ask the server of this container whether it is alive, where HOST and PORT say: the Dockerfile's HEALTHCHECK.

Ends with status 0 if it is. Uses nothing but the standard library, to start in a moment, every 15 s.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys

TIMEOUT = 4.0


def main() -> int:
    host = os.environ.get("HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  asked at, not bound to
    unix = host.startswith("unix:")
    connection = http.client.HTTPConnection(
        "localhost" if unix else host, int(os.environ.get("PORT") or 8000), timeout=TIMEOUT
    )
    try:
        if unix:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(TIMEOUT)
            connection.sock.connect(host.removeprefix("unix:").removeprefix("//"))
        connection.request("GET", os.environ.get("FLASKCHAT_URL_PREFIX", "").rstrip("/") + "/healthz")
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}: {error}")  # `docker inspect` shows it
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
