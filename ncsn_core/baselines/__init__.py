"""What the score is compared with: an adversarial pair, a PixelCNN, an energy model."""

from ncsn_core._lazy import names_of

__all__: list[str] = []

__getattr__, __dir__ = names_of(__name__, {}, "energy_model gan pixelcnn")
