"""What becomes of the outcome of a photo; apart, because who only reads it needs no database driver."""

from __future__ import annotations

from enum import Enum


class Stored(Enum):
    """What became of the outcome of one photo."""

    STORED = "stored"  # embeddings written, READY
    NO_FACES = "no_faces"  # no embeddings, NO_FACES_FOUND
    FAILED = "failed"  # no embeddings written, FAILED unless an earlier success stands
    REFUSED = "refused"  # as FAILED, because the database refuses the data of this photo
    GONE = "gone"  # the photo was deleted: nothing of it is stored any more
    LOST = "lost"  # the lease is another runner's: nothing was done
