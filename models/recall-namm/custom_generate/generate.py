"""`model.generate(..., custom_generate=FOLDER, trust_remote_code=True)` with this NAMM as the model's memory.

All arguments of `generate` go on to it. To continue a conversation, pass the `past_key_values` of an answer
(`return_dict_in_generate=True`) with the whole text so far.
"""

# transformers fetches the files that are named in this form, and no others.
from .attention import __name__ as _attention
from .bam import __name__ as _bam
from .blocks import __name__ as _blocks
from .cache import __name__ as _cache
from .config import __name__ as _config
from .holding import __name__ as _holding
from .mlp import __name__ as _mlp
from .namm import __name__ as _namm
from .packing import __name__ as _packing
from .policies_base import __name__ as _policies_base
from .ragged import __name__ as _ragged
from .rotary import __name__ as _rotary
from .scorer import __name__ as _scorer
from .sharing import __name__ as _sharing
from .spectrogram import __name__ as _spectrogram
from .statistics import __name__ as _statistics
from .support import __name__ as _support
from .tiles import __name__ as _tiles
from .with_memory import __name__ as _with_memory
from .weights import CONFIG, TENSORS
from .with_memory import from_text, generate_with

_NAMM = from_text(CONFIG, TENSORS)


def generate(model, *arguments, **settings):
    """See `transformers.GenerationMixin.generate`; the model's own attention is set back at the end."""
    return generate_with(_NAMM, model, *arguments, **settings)
