"""What globalcom2 must know of the family. It is imported when it is used, not before."""

from globalcom2.adapters.llava_next import LlavaNextAdapter


class LanternaAdapter(LlavaNextAdapter):
    """As LLaVA-NeXT's, but by default scores are read in the tower's last layer."""

    def default_layer(self, base):
        """The last of the tower's layers."""
        return -1
