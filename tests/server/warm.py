"""gunicorn's settings for the servers that tests start: what all workers import is imported once, before the fork.

Hundreds of servers are started, of two workers each, and most of what a start costs is imports, three quarters of a
second of a processor's time. The application is each worker's own, and made after the fork.
"""

# First, as in deploy/gunicorn.conf.py: what is imported before the patch keeps the blocking calls.
from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402

gc.disable()  # what is imported stays

import flaskchat  # noqa: E402, F401

gc.enable()
gc.freeze()
