"""pplleak: what does a gradient shared in federated learning reveal about the private data behind it?

The names of ``__init__.pyi`` are loaded when they are first asked for: importing this imports neither torch nor numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

del lazy_loader
