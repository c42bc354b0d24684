"""What `rlsf replay page` writes: groups of a replay store as one HTML file that needs nothing but a browser.

From a stored group to markup: `view` and `evidence` say what there is to see, in the terms of `blocks` and `pieces`;
the templates draw it; `write` keeps it inert, since completions are written by a model that nobody vouches for.
"""

from rlsf.replay.page.command import make_page
from rlsf.replay.page.write import Selection, write_page

__all__ = ["Selection", "make_page", "write_page"]
