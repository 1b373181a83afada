"""What comes from elsewhere is data: no code in it runs, no name in it leads out of a folder, no key goes astray."""

from grpo_ext.trust.network import open_url, without_password
from grpo_ext.trust.places import inside
from grpo_ext.trust.saved import opened, refuse_pickles, refuse_unsafe_states

__all__ = ["inside", "open_url", "opened", "refuse_pickles", "refuse_unsafe_states", "without_password"]
