"""SpokenAffect: a synthetic corpus whose law is known, so that a system can be judged against ceilings.

Espeak-ng speaks English, Finnish and French sentences. The one affect word of a sentence decides the sign of
valence, the prosody decides arousal, and the emotion is their quadrant, so text alone and prosody alone stop at
50 UA by construction. `law` says what is drawn, `voices` who speaks, `synthesis` how it sounds, `ceilings` what the
best possible system scores. It is not human speech: a result on it says that the machinery works, nothing more.

Needs the extra `demo` (espeakng-loader; espeak-ng is GPLv3 and stays an optional, separately installed library).
"""

from shards.corpora.spokenaffect.corpus import CORPUS, generate, read

__all__ = ["CORPUS", "generate", "read"]
