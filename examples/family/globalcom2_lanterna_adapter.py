"""What globalcom2 must know of the family. It is imported when a model of the family is compressed, not before."""

from globalcom2.adapters.llava_next import LlavaNextAdapter


class LanternaAdapter(LlavaNextAdapter):
    """As LLaVA-NeXT's, but scores are read in the tower's last layer where the caller names none."""

    def default_layer(self, base):
        """The last of the tower's layers."""
        return -1
