"""What the score is compared with: an adversarial pair, a PixelCNN, an energy model."""
